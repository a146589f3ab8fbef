"""Products with 8- and 4-bit weights: against plain arithmetic on the same quantised numbers, and against float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from thalweg.kernels.native import missing as kernels_missing
from thalweg.ops import quantized
from thalweg.ops.quantized import (
    Int8,
    WeightOnly,
    int8_linear,
    int8_linear_reference,
    quantize_rows,
    quantize_rows_reference,
    quantize_weight,
    rotate,
)

SIZES = [(1, 1, 1), (5, 7, 3), (33, 96, 40), (300, 384, 29), (257, 80, 513)]
"""Rows, inputs, outputs: odd ones, and more than a tile of each."""


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=["integers", "float32"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Integer products where the CPU has them, and what stands for them where not."""
    kind: str = request.param
    if kind == "float32":
        monkeypatch.setattr(quantized, "missing", lambda: "as if there were no VNNI")
    elif quantized.missing():
        pytest.skip(quantized.missing())
    return kind


def data(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of very different size, with an outlier in each, weights and bias."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    x[:, inputs // 2] *= 40
    return x, torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)


def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.full((len(x), len(weight)), torch.nan, dtype=x.dtype)
    int8_linear(x, [(Int8(weight), bias, out)])
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_what_the_quantised_numbers_come_to(
    products: str, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x, weight, bias = data(*size)
    x = x.to(dtype)
    got = apply(x, weight, bias)
    want = int8_linear_reference(*quantize_rows(x), *quantize_weight(weight), bias)
    error = (got.double() - want).abs() / want.abs().amax(1, keepdim=True)
    assert error.max() < {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_near_that_of_float32(products: str, size: tuple[int, int, int]) -> None:
    """Eight bits of both sides: half a level of 127 each, over as many inputs as there are at random signs."""
    x, weight, _ = data(*size)
    exact = x @ weight.t()
    error = torch.linalg.vector_norm(apply(x, weight) - exact, dim=1)
    typical = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(weight) / size[1] ** 0.5
    assert (error <= 0.03 * typical).all()


def test_a_row_does_not_depend_on_its_batch(products: str) -> None:
    """Bit for bit, whatever is beside it: neither the tile nor the number of rows nor a huge neighbour matters."""
    x, weight, bias = data(600, 192, 40)
    whole = apply(x, weight, bias)
    assert torch.equal(torch.cat([apply(part, weight, bias) for part in x.split([1, 3, 30, 211, 355])]), whole)
    assert torch.equal(apply(x.flip(0), weight, bias).flip(0), whole)
    x[7] = 1e30
    assert torch.equal(apply(x, weight, bias)[8:], whole[8:])


def test_what_is_not_finite_stays_in_its_row(products: str) -> None:
    x, weight, bias = data(40, 64, 9)
    whole = apply(x, weight, bias)
    x[3, 5], x[9, 0], x[11] = torch.nan, torch.inf, 0
    got = apply(x, weight, bias)
    assert not got[[3, 9]].isfinite().any()
    assert torch.equal(got[11], bias)
    others = [i for i in range(40) if i not in (3, 9, 11)]
    assert torch.equal(got[others], whole[others])


@pytest.mark.skipif(bool(kernels_missing()), reason="no native kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 7, 40, 96, 128, 384, 640, 1000, 1536])
def test_the_native_kernel_gives_the_levels_of_the_reference(inputs: int, dtype: torch.dtype) -> None:
    """Up to one level where a number lies between two, which is rare; rows that lie apart in memory, too."""
    x = data(90, inputs + 3, 1)[0].to(dtype)[:, 1 : inputs + 1]
    q, scales = quantize_rows(x)
    want, want_scales = quantize_rows_reference(x)
    torch.testing.assert_close(scales, want_scales, rtol=1e-6, atol=0)
    difference = (q.int() - want.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("inputs", [1, 6, 384, 1000, 2112])
def test_the_rotation_loses_nothing(inputs: int) -> None:
    """Products of rotated rows and weights are those of the rows and weights."""
    x, weight, _ = data(20, inputs, 6)
    exact = x.double() @ weight.double().t()
    error = (rotate(x).double() @ rotate(weight).double().t() - exact).abs() / exact.abs().amax(1, keepdim=True)
    assert error.max() < 1e-5


def test_the_rotation_keeps_one_large_input_from_taking_the_digits_of_all_others() -> None:
    x, weight = torch.randn(50, 384, generator=torch.Generator().manual_seed(0)), data(50, 384, 64)[1]
    x[:, 100] = 40

    def rounded(t: Tensor) -> Tensor:
        scale = t.abs().amax(1, keepdim=True) / 127
        return (t / scale).round() * scale

    exact = x @ weight.t()
    rotated_error = (apply(x, weight) - exact).norm(dim=1)
    plain_error = (rounded(x) @ rounded(weight).t() - exact).norm(dim=1)
    assert (rotated_error < 0.5 * plain_error).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [size for size in SIZES if size[1] % 2 == 0], ids=str)
def test_weights_of_few_bits_are_within_half_a_level(size: tuple[int, int, int], bits: int) -> None:
    _, weight, _ = data(*size)
    weight[0] = 0
    matrix = WeightOnly(weight, bits)
    groups = weight.unflatten(1, (*matrix.levels.shape[1:2], -1))
    low, high = groups.aminmax(dim=2, keepdim=True)
    stored = 2**-7 * (low.abs() + high.abs())  # low and scale are bfloat16
    bound = (0.5 * (high - low) / (2**bits - 1) + stored + 1e-30).expand_as(groups).flatten(1)
    assert ((matrix.unpack(slice(None)) - weight).abs() <= bound).all()
    assert matrix.levels.nbytes == weight.numel() * bits // 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_with_few_bits_of_weights(bits: int, dtype: torch.dtype) -> None:
    x, weight, bias = data(30, 64, 600)
    matrix, x = WeightOnly(weight, bits), x.to(dtype)
    out = torch.full((30, 605), torch.nan, dtype=dtype)
    matrix.multiply(x, bias.to(dtype), out[:, 2:602])
    want = x.double() @ matrix.unpack(slice(None)).to(dtype).double().t() + bias.double()
    error = (out[:, 2:602].double() - want).abs() / want.abs().amax(1, keepdim=True)
    assert error.max() < (1e-6 if dtype == torch.float32 else 2**-7)
    assert out[:, :2].isnan().all()
    assert out[:, 602:].isnan().all()
