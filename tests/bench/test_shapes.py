"""Shapes are the published ones, and every one of them can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from thalweg.bench.shapes import SHAPES, shape
from thalweg.bench.weights import recurrent_model, transformer_model
from thalweg.checkpoints import load_checkpoint, save_checkpoint
from thalweg.errors import InvalidInputError
from thalweg.families import FAMILIES, find_family
from thalweg.models.quantized import Quantization, QuantizedLinear, weight_bytes
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
        with torch.device("meta"):
            model = find_family(kind.family).build(kind.config)
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


@pytest.mark.slow
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [
        *((dtype, None) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
        *((dtype, quantize) for dtype in (torch.float32, torch.bfloat16) for quantize in ("int8", "int4")),
    ],
)
def test_random_weights_have_the_dtypes_of_a_checkpoint(
    family: str, dtype: torch.dtype, quantize: Quantization | None, tmp_path: Path
) -> None:
    """What is measured is what users run: the same parameters in the same dtypes as `load_checkpoint` gives them."""
    shape = SHAPES[find_family(family).sizes[0].name]
    model = recurrent_model(shape, dtype, layers=2, vocabulary=32, quantize=quantize)
    save_checkpoint(
        recurrent_model(shape, torch.float32, layers=2, vocabulary=32),
        tmp_path / "model",
        tokenizer_folder=None,
        embedding=None,
        dtype=dtype,
    )
    loaded: Any = load_checkpoint(tmp_path / "model", dtype=dtype, quantize=quantize).model
    assert _dtypes(model) == _dtypes(loaded)
    assert weight_bytes(model) == weight_bytes(loaded)
    if dtype.itemsize < 4:
        assert {parameter.dtype for parameter in model.parameters()} == {dtype, torch.float32}
    if dtype == torch.float64:
        return
    hidden, _ = model.forward(torch.arange(20), Packing.whole([20]))
    assert hidden.isfinite().all()
    assert hidden.std() > 0


def _dtypes(model: Any) -> dict[str, torch.dtype]:
    quantized = {name: m.dtype for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    return quantized | {name: parameter.dtype for name, parameter in model.named_parameters()}


def test_the_same_weights_every_time() -> None:
    first, second = (recurrent_model(SHAPES["mamba2-130m"], torch.float32, layers=1, vocabulary=32) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_shape() -> None:
    with pytest.raises(InvalidInputError, match="no shape 'gpt-5'; the shapes: mamba2-130m"):
        shape("gpt-5")
