"""Linear layers with weights of 8 or 4 bits, and which layers become such.

Embeddings, norms, convolutions and all that is narrow (gates, low-rank products) stay as they are: quantising them
saves nothing, and decays are formed there. A family may say in `output_parts` of a module that the outputs of a linear
layer of it are computed in parts; outputs beyond those parts go into exponentials or states and keep 8 bits of the
weights only, with rows as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.ops.quantized import Int8, WeightOnly, int8_linear

Quantization: TypeAlias = Literal["int8", "int4"]
"""int8: 8-bit weights and rows, for speed; int4: 4-bit weights only, for memory."""

MIN_WIDTH = 320
"""Inputs and outputs of the narrowest layer that is quantised: above the low-rank products and gates of all public
models but the largest, below the projections of the smallest."""


class QuantizedLinear(nn.Module):
    """Stands for an nn.Linear, whose weight it gets in `fill`. No gradients, CPU only.

    Args:
        dtype: of what it takes and gives.
        parts: widths of the first outputs that are computed apart (see `columns`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        *,
        dtype: torch.dtype,
        quantization: Quantization,
        parts: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype = dtype
        self.quantization = quantization
        self.bias = bias
        rest = out_features - sum(parts)
        self.widths = (*parts, rest) if rest else parts
        self._n_quantized = len(parts)
        self.matrices: list[Int8 | WeightOnly] = []

    def fill(self, weight: Tensor) -> None:
        """(E, D) of any dtype; it is not kept."""
        self.matrices = []
        for i, part in enumerate(weight.detach().split(self.widths)):
            whole = i < self._n_quantized
            if self.quantization == "int8" and whole:
                self.matrices.append(Int8(part))
            else:
                self.matrices.append(WeightOnly(part, 4 if whole else 8))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, without the bias, which is a parameter."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def workspace(self) -> int:
        """Bytes that a product takes besides its result."""
        return sum(matrix.workspace for matrix in self.matrices)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, E)."""
        return self.columns(x, 0, self.out_features)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """(N, D) -> (N, stop - start): some of the outputs, whole parts of them.

        Raises:
            InvalidInputError: gradients are wanted, or x is not on the CPU.
        """
        self._check(x)
        out = x.new_empty(len(x), stop - start)
        integer: list[tuple[Int8, Tensor | None, Tensor]] = []
        at = 0
        for matrix, width in zip(self.matrices, self.widths, strict=True):
            end = at + width
            if start <= at and end <= stop:
                bias, to = None if self.bias is None else self.bias[at:end], out[:, at - start : end - start]
                if isinstance(matrix, Int8):
                    integer.append((matrix, bias, to))
                else:
                    matrix.multiply(x, bias, to)
            else:
                assert end <= start or stop <= at, f"{start}:{stop} cuts the part {at}:{end}"
            at = end
        if integer:
            int8_linear(x, integer)
        return out

    def _check(self, x: Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            raise InvalidInputError(
                f"a model with {self.quantization} weights has no gradients; to train, load it without quantize"
            )
        if x.device.type != "cpu":
            raise InvalidInputError(
                f"{self.quantization} weights run on the CPU only, not on {x.device}; load the model without quantize"
            )


def check_quantization(quantization: str | None, device: torch.device | str) -> None:
    """Raises:
    InvalidInputError: no such quantisation, or not on this device.
    """
    if quantization is None:
        return
    if quantization not in get_args(Quantization):
        raise InvalidInputError(f"quantize must be one of {', '.join(get_args(Quantization))}, got {quantization!r}")
    if torch.device(device).type != "cpu":
        raise InvalidInputError(
            f"quantize={quantization!r} runs on the CPU only, not on {device}; pass device='cpu', or leave out "
            "quantize and pass dtype='bfloat16' for less memory"
        )


def replace_linears(
    model: nn.Module, quantization: Quantization, *, min_width: int = MIN_WIDTH, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, QuantizedLinear, nn.Linear]]:
    """Put a `QuantizedLinear` in the place of every wide linear layer, one at a time; the caller fills it.

    Yields:
        The layer's name, its new and its old form. Where nothing else holds the old one, its weight goes with it.
    """
    layers = model.get_submodule("layers")
    owners = [(f"layers.{name}", module) for name, module in layers.named_modules() if name]
    for path, owner in owners:
        parts = getattr(owner, "output_parts", {})
        for name, layer in list(owner.named_children()):
            if type(layer) is not nn.Linear or min(layer.in_features, layer.out_features) < min_width:
                continue
            if layer.in_features % 2:
                continue  # two weights of 4 bits share a byte
            quantized = QuantizedLinear(
                layer.in_features,
                layer.out_features,
                layer.bias,
                dtype=dtype or layer.weight.dtype,
                quantization=quantization,
                parts=parts.get(name, (layer.out_features,)),
            )
            quantized.train(layer.training)
            setattr(owner, name, quantized)
            yield f"{path}.{name}", quantized, layer


def quantize_(model: nn.Module, quantization: Quantization, *, min_width: int = MIN_WIDTH) -> None:
    """Quantise a model in place, layer by layer.

    Raises:
        InvalidInputError: no such quantisation, or the model is not on the CPU.
    """
    check_quantization(quantization, next(model.parameters()).device)
    for _, quantized, layer in replace_linears(model, quantization, min_width=min_width):
        quantized.fill(layer.weight)


def quantization_of(model: nn.Module) -> Quantization | None:
    """How the model's weights are quantised, if at all."""
    return next((m.quantization for m in model.modules() if isinstance(m, QuantizedLinear)), None)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model."""
    kept = sum(parameter.nbytes for parameter in model.parameters())
    return kept + sum(module.nbytes for module in model.modules() if isinstance(module, QuantizedLinear))


def weight_count(model: nn.Module) -> int:
    """Numbers that the weights of a model are, whatever the bits of each."""
    kept = sum(parameter.numel() for parameter in model.parameters())
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    return kept + sum(module.in_features * module.out_features for module in quantized)


def workspace_bytes(model: nn.Module) -> int:
    """The most that a quantised layer's product takes besides its result."""
    return max((module.workspace for module in model.modules() if isinstance(module, QuantizedLinear)), default=0)
