"""What the shared harness does not say of `token_shift`."""

from __future__ import annotations

import pytest
import torch

from thalweg.errors import InvalidInputError
from thalweg.ops.token_shift import token_shift
from thalweg.packing import Packing


def test_half_precision_keeps_its_dtype_and_a_float32_state() -> None:
    x = torch.randn(7, 3).bfloat16()
    y, state = token_shift(x, Packing([4, 3], n_carried=1, wanted=(1,)), initial_state=torch.full((1, 3), 0.5))
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, torch.cat([torch.full((1, 3), 0.5), x[:3], torch.zeros(1, 3), x[4:6]]).bfloat16())
    torch.testing.assert_close(state[0], x[6].float())


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        (torch.zeros(9, 4), None, r"x must be \(N=10, D\), got \(9, 4\)"),
        (torch.zeros(10, 4), torch.zeros(2, 4), r"initial_state must be \(S_in, D\) = \(1, 4\), got \(2, 4\)"),
    ],
)
def test_errors_quote_the_shapes(x: torch.Tensor, state: torch.Tensor | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        token_shift(x, Packing([10], n_carried=1), initial_state=state)
