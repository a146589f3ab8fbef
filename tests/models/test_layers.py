"""Matrix products: in parts, and in float32 where the CPU has no half precision."""

from __future__ import annotations

import pytest
import torch

from thalweg.models import layers


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
