"""Segments that are not finite, kept from those beside them.

Short segments share the blocks of a scan, and a mask inside a matrix product is a product with 0, which NaN and inf
survive. So a scan looks at what it gives out. Where that is not finite, which is rare, the segments to blame are found,
zeros take their place, the run is computed again, and they get NaN: from their first token that is not finite on, and
in their final state. A segment whose numbers only overflow inside the scan is computed once more on its own.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from thalweg.packing import Packing

Scan = TypeVar("Scan", bound=Callable[..., Any])


class Checked(NamedTuple):
    """What a scan gives that has looked at its results itself."""

    y: Tensor
    state: Any
    finite: bool


def isolated(*per_token: str) -> Callable[[Scan], Scan]:
    """For a scan over packed runs: no segment has an effect on another one, whatever it holds.

    The scan takes `packing` and maybe `initial_state` and `rows`, and gives y and a final state, or `Checked`. A state
    is a tensor or a tuple of tensors. `per_token`: the arguments that have a row for each token, or for each of `rows`.
    """

    def decorate(scan: Scan) -> Scan:
        @functools.wraps(scan)
        def run(*args: Any, **options: Any) -> tuple[Tensor, Any]:
            y, state, *checked = scan(*args, **options)
            if checked[0] if checked else all_finite(y, *_parts(state)):
                return y, state
            given = inspect.signature(scan).bind(*args, **options)
            given.apply_defaults()
            return _Isolation(scan, per_token, given.arguments).run(y, state)

        return run  # type: ignore[return-value]

    return decorate


def all_finite(*tensors: Tensor) -> bool:
    """Whether all numbers are finite; one sum over them tells, unless it overflows."""
    tensors = tuple(t.detach() for t in tensors if t.numel() and t.device.type != "meta")
    if not tensors:
        return True
    # float16 overflows too soon; the others sum as they are (asked for another dtype, PyTorch makes a copy first)
    total = sum(t.sum(dtype=torch.float32 if t.dtype == torch.float16 else None) for t in tensors)
    return math.isfinite(float(total)) or all(bool(t.isfinite().all()) for t in tensors)


def _parts(state: Any) -> tuple[Tensor, ...]:
    return tuple(state) if isinstance(state, tuple) else (state,)


def _like(state: Any, parts: Sequence[Tensor]) -> Any:
    if not isinstance(state, tuple):
        return parts[0]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


class _Isolation:
    """One run with segments that are not finite."""

    def __init__(self, scan: Callable[..., Any], per_token: Sequence[str], given: dict[str, Any]) -> None:
        self.scan, self.given = scan, given
        self.packing: Packing = given["packing"]
        self.rows: Sequence[int] = range(self.packing.n_tokens) if given.get("rows") is None else given["rows"]
        self.state = given.get("initial_state")
        self.per_token: dict[str, Tensor] = {name: given[name] for name in per_token}
        self.shared = [
            t for name, t in given.items() if isinstance(t, Tensor) and name not in (*per_token, "initial_state")
        ]

    def run(self, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`y`, `state`: what came out as the run is."""
        if not all_finite(*self.shared):
            return y, state  # then nothing can be finite
        first = self._first_not_finite()
        if first:
            y, state = self._without(first)
        alone = self._not_finite_alone(first, y, state)
        if alone:
            y, state = self._without({**first, **dict.fromkeys(alone, 0)}, alone)
        return y, state

    def _first_not_finite(self) -> dict[int, int]:
        """By segment, how many of its tokens come before its first that is not finite; 0 also for its state."""
        good = torch.ones(self.packing.n_tokens, dtype=torch.bool, device="cpu")
        for tensor in self.per_token.values():
            good[self._positions(tensor)] &= _finite_rows(tensor)
        if self.state is not None:
            starts = torch.tensor(self.packing.cu_seqlens[: self.packing.n_carried], dtype=torch.int64, device="cpu")
            for part in _parts(self.state):
                good[starts] &= _finite_rows(part)[list(self.packing.carried_rows)]
        pieces = enumerate(good.split(self.packing.lengths))
        return {segment: int(piece.to(torch.uint8).argmin()) for segment, piece in pieces if not piece.all()}

    def _without(self, first: dict[int, int], alone: dict[int, tuple[Tensor, Any]] | None = None) -> tuple[Tensor, Any]:
        """The run with zeros from those tokens on; what is given for these is NaN, or what they give on their own."""
        bounds = self.packing.cu_seqlens
        out = torch.zeros(self.packing.n_tokens, dtype=torch.bool, device="cpu")
        for segment, n in first.items():
            out[bounds[segment] + n : bounds[segment + 1]] = True
        given = dict(self.given)
        for name, tensor in self.per_token.items():
            given[name] = _fill(tensor, out[self._positions(tensor)], 0)
        if self.state is not None:
            rows = _mask([first.get(s) == 0 for s in range(self.packing.n_carried)])
            states = [_fill(self.packing.by_segment(part), rows, 0) for part in _parts(self.state)]
            given["initial_state"], given["packing"] = _like(self.state, states), self.packing.with_own_states()
        y, state, *_ = self.scan(**given)
        wanted = _mask([s in first for s in self.packing.wanted])
        y = _fill(y, out[list(self.rows)], math.nan)
        parts = [_fill(part, wanted, math.nan) for part in _parts(state)]
        for segment, (own, own_state) in (alone or {}).items():
            here = [n for n, row in enumerate(self.rows) if bounds[segment] <= row < bounds[segment + 1]]
            y = y.index_copy(0, torch.tensor(here, dtype=torch.int64, device=y.device), own)
            if segment in self.packing.wanted:
                row = torch.tensor([self.packing.wanted.index(segment)], device=y.device)
                parts = [part.index_copy(0, row, o) for part, o in zip(parts, _parts(own_state), strict=True)]
        return y, _like(state, parts)

    def _not_finite_alone(self, first: dict[int, int], y: Tensor, state: Any) -> dict[int, tuple[Tensor, Any]]:
        """Segments that overflow by themselves, with what they give then; none if all that is not in `first` is finite.

        One of `first` may do so before the token that is not finite.
        """
        owner = [segment for segment, n in enumerate(self.packing.lengths) for _ in range(n)]
        kept = [n for n, row in enumerate(self.rows) if owner[row] not in first]
        states = [n for n, segment in enumerate(self.packing.wanted) if segment not in first]
        if all_finite(y[kept], *(part[states] for part in _parts(state))):
            return {}
        overflowing = {}
        for segment in range(self.packing.n_segments):
            if first.get(segment) != 0:
                own_y, own_state = self._alone(segment, first.get(segment))
                if not all_finite(own_y, *_parts(own_state)):
                    overflowing[segment] = self._spoilt(segment, first.get(segment), own_y, own_state)
        return overflowing

    def _alone(self, segment: int, n_finite: int | None) -> tuple[Tensor, Any]:
        """What one segment gives on its own, of its first `n_finite` tokens and zeros."""
        start, stop = self.packing.cu_seqlens[segment : segment + 2]
        carried = segment < self.packing.n_carried
        given = dict(self.given)
        given["packing"] = Packing([stop - start], n_carried=int(carried), wanted=(0,), device=self.packing.device)
        for name, tensor in self.per_token.items():
            here = [(n, row - start) for n, row in enumerate(self._positions(tensor)) if start <= row < stop]
            given[name] = tensor[[n for n, _ in here]]
            if n_finite:
                given[name] = _fill(given[name], _mask([row >= n_finite for _, row in here]), 0)
        if given.get("rows") is not None:
            given["rows"] = self._own_rows(segment)
        if self.state is not None:
            row = self.packing.carried_rows[segment] if carried else 0
            own = [part[row : row + int(carried)] for part in _parts(self.state)]
            given["initial_state"] = _like(self.state, own)
        y, state, *_ = self.scan(**given)
        return y, state

    def _spoilt(self, segment: int, n_finite: int | None, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What `_alone` gave, with NaN from the first token on that is not finite."""
        if n_finite is None:
            return y, state
        y = _fill(y, _mask([row >= n_finite for row in self._own_rows(segment)]), math.nan)
        return y, _like(state, [torch.full_like(part, math.nan) for part in _parts(state)])

    def _own_rows(self, segment: int) -> list[int]:
        """The wanted rows of a segment, from its start."""
        start, stop = self.packing.cu_seqlens[segment : segment + 2]
        return [row - start for row in self.rows if start <= row < stop]

    def _positions(self, tensor: Tensor) -> list[int]:
        """Where in the run the rows of a per-token argument are."""
        return list(range(self.packing.n_tokens)) if len(tensor) == self.packing.n_tokens else list(self.rows)


def _finite_rows(tensor: Tensor) -> Tensor:
    """(n, …) -> (n,) bool on the CPU."""
    return (
        tensor.detach().isfinite().flatten(1).all(1).cpu()
        if tensor.numel()
        else torch.ones(len(tensor), dtype=torch.bool, device="cpu")
    )


def _mask(rows: Sequence[bool]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool, device="cpu")


def _fill(tensor: Tensor, rows: Tensor, value: float) -> Tensor:
    """(n, …) with `value` in some rows; (n,) bool."""
    return tensor.masked_fill(rows.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), value)
