"""Matrix products: in parts, and in float32 where the CPU has no half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.models import layers
from thalweg.packing import Packing


class HalfProducts(TorchDispatchMode):
    """Shapes of the matrix products that are made in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.linear):
            self.seen += [tuple(t.shape) for t in args if isinstance(t, torch.Tensor) and t.dtype == torch.bfloat16]
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_leaves_a_projection_to_be_emulated(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(layers, "widened", lambda: True)
    model = FAMILIES[family]().eval().bfloat16()
    with torch.no_grad(), HalfProducts() as products:
        model(torch.arange(20) % VOCABULARY, Packing.whole([20], "cpu"))
    assert not products.seen


@pytest.mark.parametrize("wide", [False, True], ids=["half precision", "in float32"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 7, 3), (1025, 64, 1030), (2500, 33, 700)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_of_half_precision_is_right_to_its_last_digit(
    monkeypatch: pytest.MonkeyPatch, wide: bool, biased: bool, rows: int, inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(layers, "widened", lambda: wide)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*of).to(dtype) for of in ((rows, inputs), (outputs, inputs), (outputs,)))
    with torch.inference_mode():
        found = layers.linear(x, weight, bias if biased else None)
    exact = x.double() @ weight.double().t() + (bias.double() if biased else 0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=2e-3)


def test_linear_has_gradients_whatever_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "widened", lambda: True)
    weight = torch.randn(5, 3, dtype=torch.bfloat16, requires_grad=True)
    layers.linear(torch.ones(2, 3, dtype=torch.bfloat16), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.eq(2).all()
