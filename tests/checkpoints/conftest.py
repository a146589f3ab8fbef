"""Shared helpers of the checkpoint tests."""

from __future__ import annotations

import torch
from transformers import Mamba2ForCausalLM

from thalweg.checkpoints import Checkpoint
from thalweg.packing import Packing


def assert_same_weights(checkpoint: Checkpoint, oracle: Mamba2ForCausalLM, dtype: torch.dtype = torch.float32) -> None:
    """Every parameter equals the oracle's, exactly."""
    expected = oracle.backbone.state_dict()
    actual = checkpoint.model.state_dict()
    assert len(actual) == len(expected)
    for name, tensor in actual.items():
        stored = expected["norm_f.weight" if name == "norm.weight" else name.replace(".conv.", ".conv1d.")]
        wide = name.endswith(("A_log", "dt_bias", ".D"))
        assert tensor.dtype == (torch.promote_types(dtype, torch.float32) if wide else dtype), name
        assert torch.equal(tensor.double(), stored.reshape(tensor.shape).to(tensor.dtype).double()), name


def assert_same_vectors(checkpoint: Checkpoint, oracle: Mamba2ForCausalLM, tokens: int = 40) -> None:
    """The last hidden vectors agree to 1e-5 of their size."""
    ids = torch.randint(checkpoint.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle.backbone(ids[None]).last_hidden_state[0]
        actual, _ = checkpoint.model(ids, Packing.whole([tokens]))
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
