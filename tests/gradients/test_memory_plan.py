"""Bytes, as the allocator counts them: of a text k times as long only the states between chunks are k times as many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.engine.states import nbytes
from thalweg.gradients.checkpointed import embed_checkpointed
from thalweg.gradients.forward import embed_packed
from thalweg.gradients.memory_plan import plan_training_memory
from thalweg.gradients.steps import Checkpointing

CHUNK = 16


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that live tensors made by `function` take at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    live = most = 0
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):  # those of each thread come together otherwise
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def _peak(model: Any, length: int, checkpointing: Checkpointing | None, pooling: Any) -> int:
    tokens = torch.arange(length) % VOCABULARY
    more = {} if checkpointing is None else {"checkpointing": checkpointing}
    embed: Any = embed_packed if checkpointing is None else embed_checkpointed

    def step() -> None:
        result = embed(model, tokens, [length], pooling=pooling, **more)
        (result if checkpointing is None else result.vectors).sum().backward()
        model.zero_grad()

    step()
    return peak_bytes(step)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_boundary_states_grow_with_the_length(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    one_state = nbytes(model.init_state(1))
    pooling = "last" if family == "rwkv7" else "mean"
    few, many = (_peak(model, chunks * CHUNK, Checkpointing(CHUNK, CHUNK), pooling) for chunks in (4, 12))
    assert few + 7 * one_state <= many <= few + 9 * one_state + 4096
    two_level = Checkpointing(CHUNK, CHUNK, two_level=True)
    few, many = (_peak(model, chunks * CHUNK, two_level, pooling) for chunks in (4, 16))
    assert many <= few + 5 * one_state + 4096  # 2 + 2 states, then 4 + 4


def test_full_back_propagation_grows_with_activations() -> None:
    torch.manual_seed(0)
    model = FAMILIES["mamba2"]()
    few, many = (_peak(model, chunks * CHUNK, None, "mean") for chunks in (4, 12))
    assert many > few + 8 * 10 * nbytes(model.init_state(1))


def test_truncation_keeps_no_state_that_no_gradient_reaches() -> None:
    torch.manual_seed(0)
    model = FAMILIES["mamba2"]()
    few, many = (
        _peak(model, chunks * CHUNK, Checkpointing(CHUNK, CHUNK, detach_every=4), "last") for chunks in (6, 18)
    )
    assert many <= few + 4096


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_a_pass_takes(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for checkpointing in (Checkpointing(CHUNK, 4 * CHUNK), Checkpointing(CHUNK, CHUNK, two_level=True)):
        lengths = [12 * CHUNK, 5, 7 * CHUNK]
        plan = plan_training_memory(model, lengths, checkpointing, pooling="mean")
        tokens = torch.arange(sum(lengths)) % VOCABULARY

        def step(tokens: Any = tokens, lengths: Any = lengths, checkpointing: Any = checkpointing) -> None:
            embed_checkpointed(
                model, tokens, lengths, pooling="mean", checkpointing=checkpointing
            ).vectors.sum().backward()
            model.zero_grad()

        step()
        taken = peak_bytes(step)
        assert 0.5 * (plan.total - plan.weights) <= taken <= 1.3 * (plan.total - plan.weights)
