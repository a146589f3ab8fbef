"""`thalweg info` and `thalweg embed` on a tiny checkpoint of every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..checkpoints.formats import write_tokenizer
from ..checkpoints.registry import CHECKPOINTS
from .conftest import Command


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_info_and_embed(name: str, thalweg_command: Command, tmp_path: Path) -> None:
    format, write = CHECKPOINTS[name]
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
