"""`thalweg info` and `thalweg embed` on a tiny checkpoint of every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..checkpoints.formats import write_tokenizer
from ..checkpoints.formats_gated_deltanet import tiny_fla_config
from ..checkpoints.formats_gated_deltanet import write_fla as write_gated_deltanet
from ..checkpoints.formats_mamba import falcon_config, mamba_config, write_mamba_ssm
from ..checkpoints.formats_mamba import write_transformers as write_mamba
from ..checkpoints.formats_rwkv7 import tiny_tensors, write_emb, write_fla, write_pth, write_world_vocabulary
from ..checkpoints.formats_xlstm import tiny_xlstm_config, write_xlstm
from .conftest import Command


def write_rwkv7(folder: Path, write: Callable[..., Any], vocab_size: int = 300) -> None:
    write_world_vocabulary(folder)
    write(folder, tiny_tensors(vocab_size=vocab_size))


FORMATS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "gated_deltanet": ("gated_deltanet/fla", lambda folder: write_gated_deltanet(folder, tiny_fla_config())),
    "gated_deltanet, first version": (
        "gated_deltanet/fla",
        lambda folder: write_gated_deltanet(folder, tiny_fla_config(), first_version=True),
    ),
    "mamba": ("mamba/transformers", lambda folder: write_mamba(folder, mamba_config())),
    "falcon_mamba": ("mamba/transformers", lambda folder: write_mamba(folder, falcon_config(), prefix=False)),
    "mamba, mamba-ssm": ("mamba/mamba-ssm", lambda folder: write_mamba_ssm(folder, mamba_config())),
    "rwkv7, pth": ("rwkv7/pth", lambda folder: write_rwkv7(folder, write_pth)),
    "rwkv7, fla": ("rwkv7/fla", lambda folder: write_rwkv7(folder, write_fla)),
    "rwkv7, rwkv-emb": ("rwkv7/rwkv-emb", lambda folder: write_rwkv7(folder, write_emb, 65536)),
    "xlstm": (
        "xlstm/transformers",
        lambda folder: write_xlstm(folder, tiny_xlstm_config(bos_token_id=1), published=True),
    ),
}
"""What `info` must say of the format, and how a checkpoint of it is written; the tokenizer is added by the test."""


@pytest.mark.parametrize("name", FORMATS)
def test_info_and_embed(name: str, thalweg_command: Command, tmp_path: Path) -> None:
    format, write = FORMATS[name]
    folder, out = tmp_path / "model", tmp_path / "out.npy"
    folder.mkdir()
    write(folder)
    if not any(folder.glob("*vocab*")):
        write_tokenizer(folder)
    info = thalweg_command("info", folder)
    assert info.exit_code == 0, info.output
    assert format in info.stdout
    (tmp_path / "texts.jsonl").write_text('{"text": "the river runs"}\n{"text": "along its thalweg down to the sea"}\n')
    embed = thalweg_command("embed", tmp_path / "texts.jsonl", "-o", out, "--model", folder)
    assert embed.exit_code == 0, embed.output
    vectors = np.load(out)
    assert len(vectors) == 2
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-5
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
