"""Every family with weights of 8 and 4 bits: near its float32 self, and the same however the work is cut up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.bench.shapes import SHAPES
from thalweg.errors import InvalidInputError
from thalweg.families import find_family
from thalweg.models.quantized import (
    Quantization,
    QuantizedLinear,
    quantization_of,
    quantize_,
    replace_linears,
    weight_bytes,
    weight_count,
)
from thalweg.packing import Packing

NARROW = 8
"""All but gates and low-rank products of the tiny models of the registry."""


def made(family: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family]().eval().requires_grad_(False)


@pytest.fixture(params=["int8", "int4"])
def quantization(request: pytest.FixtureRequest) -> Quantization:
    chosen: Quantization = request.param
    return chosen


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_split_and_packing_gives_the_same_vectors(family: str, quantization: Quantization) -> None:
    """With int4 as exactly as in float32. With int8 sums of another order, 1e-7 apart, can round to the next level of
    127 and then differ by as much: the vectors agree far better than with those of float32, which is held to here."""
    model, exact = made(family), made(family)
    quantize_(model, quantization, min_width=NARROW)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(0, VOCABULARY, (n,), generator=generator) for n in (500, 77))
    with torch.inference_mode():
        whole, _ = model(first, Packing.whole([500]))
        reference, _ = exact(first, Packing.whole([500]))
        start, state = model(torch.cat([first[:123], second]), Packing([123, 77], wanted=(0,)))
        middle, state = model(first[123:124], Packing([1], n_carried=1, wanted=(0,)), state)
        end, _ = model(torch.cat([first[124:], second]), Packing([376, 77], n_carried=1), state)
    pieces = torch.cat([start[:123], middle, end[:376]])
    if quantization == "int4":
        torch.testing.assert_close(pieces, whole, rtol=0, atol=2e-5)
    else:
        assert cosine(pieces, whole).min() > 0.999
        assert (1 - cosine(pieces, whole)).mean() < 0.25 * (1 - cosine(whole, reference)).mean()
    assert cosine(whole, reference).mean() > (0.999 if quantization == "int8" else 0.95)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_computes_only_the_wanted_rows(family: str, quantization: Quantization) -> None:
    model = made(family)
    quantize_(model, quantization, min_width=NARROW)
    tokens = torch.arange(243) % VOCABULARY
    with torch.inference_mode():
        every, _ = model(tokens, Packing.whole([40, 200, 3]))
        some, _ = model(tokens, Packing.whole([40, 200, 3]), rows=(39, 242))
    assert cosine(some, every[[39, 242]]).min() > 0.9999


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_around_quantised_layers(family: str, quantization: Quantization) -> None:
    model, exact = made(family), made(family)
    model.to(torch.bfloat16)
    quantize_(model, quantization, min_width=NARROW)
    tokens = torch.arange(200) % VOCABULARY
    with torch.inference_mode():
        got, _ = model(tokens, Packing.whole([200]))
        want, _ = exact(tokens, Packing.whole([200]))
    assert got.dtype == torch.float32
    assert cosine(got, want).mean() > (0.995 if quantization == "int8" else 0.95)


def test_what_is_quantised_of_published_shapes() -> None:
    """The wide projections, all of them; no gate, no low-rank product, no step size on its own, no embedding head."""
    wide = {
        "mamba2-130m": {"in_proj", "out_proj"},
        "mamba-130m": {"in_proj", "out_proj"},
        "falcon-mamba-7b": {"in_proj", "out_proj"},
        "rwkv7-0.1b": {"receptance", "key", "value", "output"},
        "xlstm-0.1b": {"q", "k", "v", "o", "out_proj", "gate", "up", "down"},
        "xlstm-7b": {"q", "k", "v", "o", "out_proj", "gate", "up", "down"},
        "gated-deltanet-0.1b": {"proj", "g_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    }
    for name, layers in wide.items():
        with torch.device("meta"):
            model = find_family(SHAPES[name].family).build(SHAPES[name].resized(2, 100))
        found = {path.rsplit(".", 1)[1] for path, _, _ in replace_linears(model, "int8")}
        assert found == layers, name


def test_the_bytes_of_the_weights(quantization: Quantization) -> None:
    model = made("xlstm")
    count, before = weight_count(model), weight_bytes(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) >= NARROW]
    numbers = sum(layer.weight.numel() for layer in layers)
    quantize_(model, quantization, min_width=NARROW)
    assert weight_count(model) == count
    assert quantization_of(model) == quantization
    # int8: a scale and a zero point an output; int4: two numbers of 2 bytes for a group of 8 inputs
    extra = 12 * sum(layer.out_features for layer in layers) if quantization == "int8" else numbers // 2
    per_number = 1 if quantization == "int8" else 0.5
    assert before - weight_bytes(model) == pytest.approx(4 * numbers - per_number * numbers - extra, rel=0.05)


def test_no_gradients_and_no_other_device() -> None:
    model = made("mamba2")
    quantize_(model, "int8", min_width=NARROW)
    layer = next(m for m in model.modules() if isinstance(m, QuantizedLinear))
    with pytest.raises(InvalidInputError, match="int8 weights has no gradients; to train, load it without quantize"):
        layer(torch.randn(3, layer.in_features, requires_grad=True))
    with pytest.raises(InvalidInputError, match="CPU only, not on meta"):
        layer(torch.empty(3, layer.in_features, device="meta"))
    with pytest.raises(InvalidInputError, match="one of int8, int4, got 'int3'"):
        quantize_(made("mamba2"), "int3")  # type: ignore[arg-type]
    with torch.device("meta"), pytest.raises(InvalidInputError, match="runs on the CPU only, not on meta"):
        quantize_(FAMILIES["mamba2"](), "int8")
