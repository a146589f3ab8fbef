"""One harness for every sequence op: fast = slow, whole = any split, in outputs, states and gradients.

An op joins by a row in `tests/ops/registry.py`. Its signature is `op(**inputs, packing, initial_state=...)`, it returns
`(y, final_state)`, and a state is a tensor (or a tuple of tensors) with the segment first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from thalweg import kernels
from thalweg.packing import Packing

State = Any  # a tensor or a tuple of tensors


@dataclass(frozen=True)
class Op:
    """An op under test.

    sequential: the reference; fast: versions that must equal it, by name.
    per_token: names of the inputs whose first dimension is N; the others are shared weights.
    inputs: (N, generator) -> all tensors in float64; initial_state: (S_in, generator) -> a random state in float64.
    """

    name: str
    sequential: Callable[..., tuple[Tensor, State]]
    fast: dict[str, Callable[..., tuple[Tensor, State]]]
    per_token: tuple[str, ...]
    inputs: Callable[[int, torch.Generator], dict[str, Tensor]]
    initial_state: Callable[[int, torch.Generator], State]


@contextmanager
def with_kernels(on: bool) -> Iterator[None]:
    """With the kernels that there are, or with PyTorch alone."""
    with pytest.MonkeyPatch.context() as patch:
        if not on:
            patch.setattr(kernels, "enabled", lambda: ())
        yield


@contextmanager
def kernels_given() -> Iterator[list[str]]:
    """The names of the ops that were given a kernel, once for each time."""
    given, choose = [], kernels.kernel

    def kernel(name: str, *tensors: Tensor, **options: Any) -> Callable[..., Any] | None:
        found = choose(name, *tensors, **options)
        given.extend([name] if found else [])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "kernel", kernel)
        yield given


def parts(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def rebuild(like: State, tensors: list[Tensor]) -> State:
    return tuple(tensors) if isinstance(like, tuple) else tensors[0]


@st.composite
def packings(draw: st.DrawFn, most_segments: int = 6, most_tokens: int = 200) -> Packing:
    """Random layouts, with odd lengths, single tokens, carried, shared and wanted states in every combination."""
    lengths = draw(st.lists(st.integers(1, most_tokens), min_size=1, max_size=most_segments))
    n_carried = draw(st.integers(0, len(lengths)))
    final = sorted(draw(st.sets(st.integers(0, len(lengths) - 1))))
    any_rows = st.lists(st.integers(0, 3), min_size=n_carried, max_size=n_carried)
    return Packing(lengths, n_carried=n_carried, carried_rows=draw(st.none() | any_rows), wanted=final)


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.numel() == 0:
        return 0.0
    assert torch.isfinite(got).all()
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-6))


def check_parity(op: Op, fast: str, packing: Packing, *, dtype: torch.dtype, tolerance: float, seed: int = 0) -> None:
    """Outputs and final states of the fast version against the reference in float64."""
    inputs, state = case(op, packing, seed)
    y, final = op.sequential(**inputs, packing=packing, initial_state=state)
    low = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    low_state = rebuild(state, [tensor.to(dtype) for tensor in parts(state)])
    fast_y, fast_final = op.fast[fast](**low, packing=packing, initial_state=low_state)
    assert relative_error(fast_y, y) <= tolerance
    for got, want in zip(parts(fast_final), parts(final), strict=True):
        assert relative_error(got, want) <= tolerance


def check_split(op: Op, fast: str, lengths: list[int], cut_lengths: list[list[int]], *, tolerance: float) -> None:
    """Whole documents in one step against the same documents in pieces, one step a piece, states carried.

    `cut_lengths[d]` are the pieces of document d. Step k holds piece k of every document that has one; documents with
    fewer pieces have ended, so the rows of the state that go on must be the right ones.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = {name: tensor.float() for name, tensor in op.inputs(sum(lengths), generator).items()}
    whole = Packing.whole(lengths)
    everyone = Packing(lengths, wanted=range(len(lengths)))
    y, _ = op.fast[fast](**inputs, packing=whole)
    _, final = op.fast[fast](**inputs, packing=everyone)

    alive = sorted(range(len(lengths)), key=lambda d: -len(cut_lengths[d]))
    done = [0] * len(lengths)
    outputs: list[list[Tensor]] = [[] for _ in lengths]
    ended: dict[int, list[Tensor]] = {}
    state: State = None
    step = 0
    while alive:
        pieces = [cut_lengths[d][step] for d in alive]
        packing = Packing(pieces, n_carried=len(alive) if step else 0, wanted=range(len(alive)))
        rows = torch.cat([torch.arange(n) + whole.cu_seqlens[d] + done[d] for d, n in zip(alive, pieces, strict=True)])
        piece = {name: tensor[rows] if name in op.per_token else tensor for name, tensor in inputs.items()}
        out, state = op.fast[fast](**piece, packing=packing, initial_state=state)
        for d, n, vectors in zip(alive, pieces, out.split(pieces), strict=True):
            outputs[d].append(vectors)
            done[d] += n
        step += 1
        for row, d in enumerate(alive):
            if len(cut_lengths[d]) == step:
                ended[d] = [tensor[row] for tensor in parts(state)]
        keep = [row for row, d in enumerate(alive) if len(cut_lengths[d]) > step]
        alive = [alive[row] for row in keep]
        state = rebuild(state, [tensor[keep] for tensor in parts(state)])
    assert relative_error(torch.cat([torch.cat(o) for o in outputs]), y) <= tolerance
    for d in range(len(lengths)):
        for got, want in zip(ended[d], parts(final), strict=True):
            assert relative_error(got, want[d]) <= tolerance


def check_gradients(op: Op, fast: str, packing: Packing, *, tolerance: float = 1e-9) -> None:
    """Gradients of all inputs and of the initial state, fast against reference, both in float64."""
    inputs, state = case(op, packing, 2)

    def gradients(function: Callable[..., tuple[Tensor, State]]) -> list[Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        state_leaves = [tensor.clone().requires_grad_() for tensor in parts(state)]
        y, final = function(**leaves, packing=packing, initial_state=rebuild(state, state_leaves))
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        for tensor in parts(final):
            loss = loss + (tensor * torch.linspace(1, 2, tensor.numel(), dtype=y.dtype).view_as(tensor)).sum()
        wanted = [*leaves.values(), *state_leaves]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]

    for got, want in zip(gradients(op.fast[fast]), gradients(op.sequential), strict=True):
        assert relative_error(got, want) <= tolerance


def check_poison(op: Op, fast: str, packing: Packing, segment: int, value: float, *, dtype: torch.dtype) -> None:
    """A segment's inputs, its carried state, or both, filled with `value`: no bit of any other segment changes.

    Nor does one where other numbers stand there, or such as overflow. What comes of a segment that is not finite is not
    finite wherever the reference is not, and its tokens before the first of these are as they were.
    """
    start, stop = packing.cu_seqlens[segment : segment + 2]
    run = partial(op.fast[fast], packing=packing)
    clean, clean_state = (_lower(values, dtype) for values in case(op, packing, 0))
    other, other_state = (_lower(values, dtype) for values in case(op, packing, 1))
    want_y, want_final = run(**clean, initial_state=clean_state)
    beside = torch.tensor([not start <= row < stop for row in range(packing.n_tokens)])
    has_own_state = segment < packing.n_carried and packing.carried_rows.count(packing.carried_rows[segment]) == 1
    states_beside = torch.tensor([wanted != segment for wanted in packing.wanted], dtype=torch.bool)

    def put(first: int, inputs: dict[str, Tensor] | None, state: State | None) -> tuple[Any, Any]:
        """The clean case with something else from that token of the segment on, and in its carried state."""
        new = {name: tensor.clone() for name, tensor in clean.items()}
        for name in op.per_token:
            new[name][start + first : stop] = value if inputs is None else inputs[name][start + first : stop]
        parts_ = [part.clone() for part in parts(clean_state)]
        if first == 0 and has_own_state:
            row = packing.carried_rows[segment]
            for part, there in zip(parts_, parts(clean_state if state is None else state), strict=True):
                part[row] = value if state is None else there[row]
        return new, rebuild(clean_state, parts_)

    cases = [(0, *put(0, other, other_state)), (0, *put(0, None, None))]
    if stop - start > 1:
        middle = (stop - start) // 2
        cases.append((middle, *put(middle, None, None)))
    if has_own_state:
        cases.append((0, clean, put(0, None, None)[1]))
    for n, (first, inputs, state) in enumerate(cases):
        y, final = run(**inputs, initial_state=state)
        assert torch.equal(y[beside], want_y[beside])
        for got, want in zip(parts(final), parts(want_final), strict=True):
            assert torch.equal(got[states_beside], want[states_beside])
        if n and not math.isfinite(value):
            assert relative_error(y[start : start + first], want_y[start : start + first]) <= 1e-2
            slow_y, slow_final = op.sequential(**inputs, packing=packing, initial_state=state)
            assert not _finite(y)[~_finite(slow_y)].any()
            for got, want in zip(parts(final), parts(slow_final), strict=True):
                assert not _finite(got)[~_finite(want)].any()


def _lower(values: Any, dtype: torch.dtype) -> Any:
    """Of a case: its matrices in `dtype`, weights and states at least float32."""
    if isinstance(values, dict):
        return {name: tensor.to(dtype if tensor.ndim > 1 else torch.float32) for name, tensor in values.items()}
    return rebuild(values, [tensor.float() for tensor in parts(values)])


def _finite(rows: Tensor) -> Tensor:
    """(n, …) -> (n,) bool."""
    return rows.isfinite().flatten(1).all(1) if rows.numel() else torch.ones(len(rows), dtype=torch.bool)


def case(op: Op, packing: Packing, seed: int) -> tuple[dict[str, Tensor], State]:
    generator = torch.Generator().manual_seed(seed)
    return op.inputs(packing.n_tokens, generator), op.initial_state(packing.n_states, generator)
