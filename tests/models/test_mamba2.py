"""Mamba2 against transformers, on tiny random checkpoints of every public format and variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.formats import mistral_config, tiny_config, write_mamba_ssm, write_mistral, write_transformers
from thalweg.checkpoints import load_checkpoint
from thalweg.packing import Packing

FORMATS: dict[str, Any] = {
    "transformers": lambda folder: write_transformers(folder, tiny_config()),
    "transformers, bare": lambda folder: write_transformers(folder, tiny_config(), prefix=False),
    "transformers, limits": lambda folder: write_transformers(folder, tiny_config(time_step_limit=(0.01, 0.3))),
    "transformers, tied": lambda folder: write_transformers(folder, tiny_config(tie_word_embeddings=True)),
    "transformers, one group": lambda folder: write_transformers(folder, tiny_config(n_groups=1)),
    "transformers, four groups": lambda folder: write_transformers(folder, tiny_config(n_groups=4)),
    "transformers, biases": lambda folder: write_transformers(folder, tiny_config(use_bias=True)),
    "transformers, no conv bias": lambda folder: write_transformers(folder, tiny_config(use_conv_bias=False)),
    "transformers, wide conv": lambda folder: write_transformers(folder, tiny_config(conv_kernel=6)),
    "transformers, .bin": lambda folder: write_transformers(folder, tiny_config(), bin=True),
    "transformers, sharded": lambda folder: write_transformers(folder, tiny_config(), sharded=True),
    "mamba-ssm": lambda folder: write_mamba_ssm(folder, tiny_config(n_groups=1)),
    "mistral": lambda folder: write_mistral(folder, mistral_config()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_equals_transformers_in_float32(name: str, tmp_path: Path) -> None:
    oracle = FORMATS[name](tmp_path)
    model = load_checkpoint(tmp_path).model
    ids = torch.randint(3, 96, (257,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = oracle.backbone(ids[None]).last_hidden_state[0]
        got, _ = model(ids, Packing.whole([257]))
    assert ((got - want).abs().max() / want.abs().max()).item() <= 1e-5


def distance_to_float32(hidden: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the error over that of the exact vectors."""
    return ((hidden.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_no_further_from_float32_than_transformers_is(tmp_path: Path, seed: int) -> None:
    """Measured here: 0.064 to 0.074, and 0.083 to 0.105 in transformers (a random model magnifies errors)."""
    config = tiny_config(hidden_size=128, num_heads=8, head_dim=32, state_size=64, num_hidden_layers=6, chunk_size=64)
    oracle = write_transformers(tmp_path, config, dtype=torch.bfloat16)
    model = load_checkpoint(tmp_path, dtype=torch.bfloat16).model
    ids = torch.randint(3, 96, (600,), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        exact = oracle.backbone(ids[None]).last_hidden_state[0]
        theirs = oracle.to(torch.bfloat16).backbone(ids[None]).last_hidden_state[0]
        ours, _ = model(ids, Packing.whole([600]))
    assert distance_to_float32(ours, exact) <= distance_to_float32(theirs, exact)
