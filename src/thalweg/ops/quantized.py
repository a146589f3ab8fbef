"""Matrix products with weights of 8 or 4 bits, on the CPU.

Legend: M rows, K inputs, N outputs, R a rotation of the inputs, g inputs of a group.

8 bits (`Int8`), weights and rows both integers:
    W R  ~ scale_n * levels      a scale for each output n, levels in [-127, 127]
    x R  ~ scale_m * levels      a scale for each row m: what else is in the batch does not matter
    x Wt = (x R)(W R)t           summed in int32, which is exact; then times both scales
4 or 8 bits of the weights only (`WeightOnly`), rows as they are:
    W    ~ low + scale * levels  for each output and each group of g inputs; unpacked a few outputs at a time

R flips the sign of some inputs and then mixes them, in blocks, by a Hadamard matrix over the square root of its size.
That is orthogonal, so nothing is lost, and one large input no longer takes the digits of all the others: on the model
that ships with thalweg it makes the error of a vector four times smaller (docs/quantization.md).

The integer product is oneDNN's, through PyTorch. It takes rows as unsigned numbers, hence the zero point of 128. Where
the CPU has no instructions for it the same numbers are multiplied in float32: the same results, at less speed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import kernels
from thalweg.ops.tiles import tiles

TOP = 127
"""The largest level; -128 is not used, so that levels are symmetric."""
ZERO_POINT = 128
ROWS = 512
"""Rows of a product at a time: its int32 sums are still in a cache when they are scaled."""
STEP = 32
"""The last rows are filled up to a multiple: the library compiles its code once for every number of rows."""
BLOCK = 128
"""Inputs that are mixed, at most; less where it does not divide their number. More does not help."""
GROUP = 32
"""Inputs that share a scale where the weights are not rotated, at most."""
OUTPUTS = 256
"""Outputs that are unpacked at a time."""


def missing() -> str:
    """Why integer products are replaced by float32 ones, or ""."""
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    told = getattr(torch.cpu, "_is_vnni_supported", None)
    if told is None:
        return "this version of PyTorch does not say whether the CPU has VNNI instructions"
    # Without them oneDNN adds pairs of products in 16 bits, which overflow.
    return "" if told() else "this CPU has no VNNI instructions"


def block_size(width: int, most: int) -> int:
    """The largest power of two that divides `width`, at most `most`."""
    return min(width & -width, most)


@functools.cache
def signs(width: int) -> Tensor:
    """(K,) of 1 and -1, the same always: without them inputs that are all positive would add up in one place."""
    generator = torch.Generator(device="cpu").manual_seed(width)
    return torch.randint(0, 2, (width,), generator=generator, device="cpu").mul_(2).sub_(1).float()


@functools.cache
def _hadamard(size: int) -> Tensor:
    """(n, n), symmetric and its own inverse."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotate(x: Tensor) -> Tensor:
    """x R: (M, K) -> (M, K) float32. Inputs that are K / n apart are mixed, n being the block."""
    rows, width = x.shape
    block = block_size(width, BLOCK)
    parts = (x.float() * signs(width)).view(rows, block, width // block)
    return torch.matmul(_hadamard(block), parts).view(rows, width)


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) -> (M, K) uint8, levels + 128, and (M,) float32 scales of x R."""
    rotated = rotate(x)
    largest = rotated.abs().amax(1, keepdim=True)
    factor = torch.where(largest > 0, TOP / largest, 0.0)
    return (rotated * factor).round_().add_(ZERO_POINT).to(torch.uint8), largest[:, 0] / TOP


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference, in one pass where there is a kernel."""
    width = x.shape[1]
    if run := kernels.kernel("quantize_rows", x):
        return run(x, signs(width), block_size(width, BLOCK))
    return quantize_rows_reference(x)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> (N, K) int8 levels and (N,) float32 scales of W R."""
    levels, scales = (
        weight.new_empty(weight.shape, dtype=torch.int8),
        weight.new_empty(len(weight), dtype=torch.float32),
    )
    for tile in tiles(len(weight), OUTPUTS):  # in float32 there is never more than a tile
        rotated = rotate(weight[tile])
        scales[tile] = rotated.abs().amax(1) / TOP
        levels[tile] = rotated.div_(scales[tile].clamp_min(1e-30)[:, None]).round_()
    return levels, scales


def int8_linear_reference(
    q: Tensor, row_scales: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(M, K) uint8, (M,), (N, K) int8, (N,), (N,) -> (M, N) float64: what the quantised numbers come to."""
    sums = (q.double() - ZERO_POINT) @ levels.double().t()
    out = sums * scales.double() * row_scales.double()[:, None]
    return out if bias is None else out + bias.double()


class Int8:
    """A matrix (N, K) with 8-bit weights, for rows that are quantised too."""

    def __init__(self, weight: Tensor) -> None:
        levels, self.scales = quantize_weight(weight)
        self.n_outputs, self.n_inputs = levels.shape
        self.integer = not missing()
        self.levels = torch.ops.onednn.qlinear_prepack(levels, None) if self.integer else levels
        self._zeros = levels.new_zeros(self.n_outputs, dtype=torch.int64) if self.integer else None

    @property
    def nbytes(self) -> int:
        zeros = 0 if self._zeros is None else self._zeros.nbytes
        return self.n_outputs * self.n_inputs + self.scales.nbytes + zeros

    @property
    def workspace(self) -> int:
        """Bytes that a product takes besides its result: sums of some rows, or unpacked weights."""
        return 4 * (ROWS * self.n_outputs if self.integer else OUTPUTS * self.n_inputs + ROWS * self.n_outputs)

    def multiply(self, q: Tensor, row_scales: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """(M, K) uint8, at least as many rows as `out` (M, N), and (M,) scales: what the reference says, to `out`."""
        sums = self.sums(q)[: len(out)]
        if run := kernels.kernel("scale_rows", out):
            run(sums, row_scales, bias, out)
            return
        sums = sums.mul_(row_scales[: len(out), None])
        out.copy_(sums if bias is None else sums.add_(bias))

    def sums(self, q: Tensor) -> Tensor:
        """(M, K) uint8 -> (M, N) float32: int32 sums times the scales of the outputs."""
        if self.integer:
            qlinear = torch.ops.onednn.qlinear_pointwise
            return qlinear(
                q, 1.0, ZERO_POINT, self.levels, self.scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        x = q.float() - ZERO_POINT
        out = x.new_empty(len(q), self.n_outputs)
        for tile in tiles(self.n_outputs, OUTPUTS):
            torch.mm(x, self.levels[tile].float().t(), out=out[:, tile])
        return out.mul_(self.scales)


class WeightOnly:
    """A matrix (N, K) whose weights have 4 or 8 bits, for rows of any dtype."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        self.n_outputs, self.n_inputs = weight.shape
        self.bits = bits
        size = block_size(self.n_inputs, GROUP)
        groups = self.n_inputs // size
        self.low = weight.new_empty(self.n_outputs, groups, 1, dtype=torch.bfloat16)
        self.scales = torch.empty_like(self.low)
        self.levels = weight.new_empty(self.n_outputs, groups, size * bits // 8, dtype=torch.uint8)
        for tile in tiles(self.n_outputs, OUTPUTS):
            self._pack(tile, weight[tile].float().unflatten(1, (groups, size)))

    def _pack(self, outputs: slice, weight: Tensor) -> None:
        """weight (n, K / g, g) float32; levels are of the scales as they are stored."""
        top = 2**self.bits - 1
        low, high = weight.aminmax(dim=2, keepdim=True)
        self.low[outputs] = low
        low = self.low[outputs].float()
        self.scales[outputs] = (high - low).clamp_min_(1e-30) / top
        levels = weight.sub(low).div_(self.scales[outputs].float()).round_().clamp_(0, top).to(torch.uint8)
        if self.bits == 4:
            first, second = levels.chunk(2, dim=2)
            levels = first | (second << 4)
        self.levels[outputs] = levels

    @property
    def nbytes(self) -> int:
        return self.levels.nbytes + self.low.nbytes + self.scales.nbytes

    @property
    def workspace(self) -> int:
        """Bytes that a product takes besides its result: some unpacked weights and what they are unpacked from."""
        return (4 + 4) * OUTPUTS * self.n_inputs

    def unpack(self, outputs: slice) -> Tensor:
        """The weights of some outputs, (n, K) float32."""
        levels = self.levels[outputs]
        if self.bits == 4:
            levels = torch.cat([levels & 15, levels >> 4], dim=2)
        return levels.float().mul_(self.scales[outputs]).add_(self.low[outputs]).flatten(1)

    def multiply(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """(M, K) by this, plus bias (N,), to `out` (M, N), whose rows may lie apart."""
        for tile in tiles(self.n_outputs, OUTPUTS):
            torch.mm(x, self.unpack(tile).to(x.dtype).t(), out=out[:, tile])
        if bias is not None:
            out += bias


def int8_linear(x: Tensor, matrices: Sequence[tuple[Int8, Tensor | None, Tensor]]) -> None:
    """x (M, K) by every matrix, plus its bias, to its output (M, N); the rows are quantised once for all of them."""
    for rows in tiles(len(x), ROWS):
        tile = x[rows]
        short = -len(tile) % STEP
        q, scales = quantize_rows(torch.cat([tile, tile.new_zeros(short, tile.shape[1])]) if short else tile)
        for matrix, bias, out in matrices:
            matrix.multiply(q, scales, bias, out[rows])
