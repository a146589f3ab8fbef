"""Shapes are the published ones, and every one of them can be made."""

from __future__ import annotations

import pytest
import torch

from thalweg.bench.shapes import SHAPES, shape
from thalweg.bench.weights import RECURRENT, recurrent_model, transformer_model
from thalweg.errors import InvalidInputError
from thalweg.models.quantized import weight_bytes
from thalweg.packing import Packing

PUBLISHED = {
    "mamba2-130m": 0.129,
    "mamba2-1.3b": 1.34,
    "mamba2-2.7b": 2.70,
    "codestral-7b": 7.29,
    "mamba-130m": 0.129,
    "mamba-2.8b": 2.77,
    "falcon-mamba-7b": 7.27,
    "rwkv7-0.1b": 0.191,
    "rwkv7-0.4b": 0.451,
    "rwkv7-1.5b": 1.53,
    "rwkv7-2.9b": 2.95,
    "rwkv7-7.2b": 7.2,
    "xlstm-7b": 6.87,
    "mistral-7b": 7.24,
    "modernbert-base": 0.149,
    "modernbert-large": 0.395,
}
"""Parameters that the models' own pages state, in 1e9; ours have no language-model head of their own."""


def count(name: str) -> float:
    """Parameters of a shape, from a model without memory."""
    kind = SHAPES[name]
    if kind.recurrent:
        model_class, config_class = RECURRENT[kind.family]
        with torch.device("meta"):
            model = model_class(config_class(**kind.config))
    else:
        model = transformer_model(kind, torch.float32, device="meta", attention="sdpa", window=None, length=512)
    return float(sum(parameter.numel() for parameter in model.parameters()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    head = 0.0
    if name.startswith(
        ("rwkv7", "xlstm", "mistral", "codestral", "falcon")
    ):  # their heads are not tied to the embeddings
        kind = SHAPES[name]
        head = kind.config["vocab_size"] * kind.width
    assert (count(name) + head) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", [name for name, kind in SHAPES.items() if kind.recurrent and kind.width == 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_run(name: str, dtype: torch.dtype) -> None:
    model = recurrent_model(SHAPES[name], dtype, layers=2, vocabulary=32)
    hidden, _ = model.forward(torch.arange(20), Packing.whole([20]))
    assert hidden.isfinite().all()
    assert hidden.std() > 0
    wide = [p for n, p in model.named_parameters() if n.endswith(("A_log", "dt_bias", ".D"))]
    assert all(parameter.dtype == torch.float32 for parameter in wide)
    width = 2 if dtype == torch.bfloat16 else 4
    narrow = sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(model) == width * narrow + (4 - width) * sum(parameter.numel() for parameter in wide)


def test_the_same_weights_every_time() -> None:
    first, second = (recurrent_model(SHAPES["mamba2-130m"], torch.float32, layers=1, vocabulary=32) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_shape() -> None:
    with pytest.raises(InvalidInputError, match="no shape 'gpt-5'; the shapes: mamba2-130m"):
        shape("gpt-5")
