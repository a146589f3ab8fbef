"""Where texts start: drawn from states of earlier steps, repeatable, bounded."""

from __future__ import annotations

import pytest
import torch

from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.errors import InvalidInputError
from thalweg.gradients.batch import flatten
from thalweg.gradients.checkpointed import embed_checkpointed
from thalweg.gradients.embed import embed_for_training
from thalweg.gradients.state_passing import StatePassing


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_states_of_earlier_texts_or_zero(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    passing = StatePassing(probability=0.5, size=4)
    assert passing.draw(model, 3) is None
    tokens = torch.randint(0, VOCABULARY, (60,))
    final = embed_checkpointed(model, tokens, [10] * 6, pooling="last", keep_final_state=True).final_state
    assert final is not None
    passing.collect(tuple(type(layer)(*(tensor[:3] for tensor in layer)) for layer in final))
    passing.collect(tuple(type(layer)(*(tensor[3:] for tensor in layer)) for layer in final))
    assert passing.draw(model, 3) is None  # nothing before the optimiser's step
    passing.advance()
    assert len(passing) == 4
    torch.manual_seed(1)
    drawn = passing.draw(model, 200)
    torch.manual_seed(1)
    again = passing.draw(model, 200)
    assert drawn is not None
    assert again is not None
    for tensor, repeated, pool, zero in zip(
        flatten(drawn), flatten(again), flatten(final), flatten(model.init_state(1)), strict=True
    ):
        assert torch.equal(tensor, repeated)
        assert not tensor.requires_grad
        known = torch.cat([pool[-4:], zero]).flatten(1)
        found = (tensor.flatten(1)[:, None] == known).all(2)
        assert found.any(1).all()
        assert found[:, :4].any(0).all()
        assert 60 < found[:, 4].sum() < 140


def test_training_goes_on_where_other_texts_ended() -> None:
    """Two texts passed on against the two written as one."""
    torch.manual_seed(0)
    model = FAMILIES["mamba2"]()
    passing = StatePassing(probability=1.0, size=1)
    first, second = torch.randint(0, VOCABULARY, (2, 50))
    embed_for_training(model, first, [50], pooling="last", state_passing=passing)
    passing.advance()
    passed = embed_for_training(model, second, [50], pooling="last", state_passing=passing)
    whole = embed_for_training(model, torch.cat([first, second]), [100], pooling="last")
    torch.testing.assert_close(passed, whole, rtol=0, atol=1e-5)
    passing.advance()
    passing.advance()
    assert len(passing) == 1


@pytest.mark.parametrize("arguments", [{"probability": 1.5}, {"probability": -0.1}, {"size": 0}])
def test_settings_that_cannot_be(arguments: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="got"):
        StatePassing(**arguments)  # type: ignore[arg-type]
