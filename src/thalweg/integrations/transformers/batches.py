"""A padded batch (B, T) as packed steps: the model sees its tokens and never its padding.

A step is a span of columns. Rows that have no token in it are not in it, so a left-padded text costs nothing until it
begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.integrations.transformers.cache import RecurrentCache
from thalweg.packing import Packing


@dataclass(frozen=True)
class Step:
    """One packed run.

    rows: those that have tokens in it, first the `packing.n_carried` ones that go on from a state; tokens: (N,) int64;
    packing: one segment a row; positions: (N,) int64, where each token stands in the flattened batch; later: the rows
    of the batch whose state is still wanted after it.
    """

    rows: list[int]
    tokens: Tensor
    packing: Packing
    positions: Tensor
    later: set[int]

    @property
    def carried(self) -> list[int]:
        return self.rows[: self.packing.n_carried]

    @property
    def kept(self) -> list[int]:
        """The rows of `packing.wanted`."""
        return [self.rows[segment] for segment in self.packing.wanted]


def check_batch(input_ids: Tensor | None, attention_mask: Tensor | None, cache: RecurrentCache | None) -> Tensor:
    """Which tokens of a call count, bool (B, T) on the CPU.

    Raises:
        InvalidInputError: ids that are none, or a mask or a cache that does not fit them.
    """
    if not isinstance(input_ids, Tensor):
        raise InvalidInputError(f"input_ids must be a tensor of integers (B, T), not {type(input_ids).__name__}")
    if input_ids.ndim != 2 or input_ids.is_floating_point() or 0 in input_ids.shape:
        shape, dtype = tuple(input_ids.shape), input_ids.dtype
        raise InvalidInputError(f"input_ids must be integers (B, T) with at least one of each, not {shape} of {dtype}")
    batch, length = input_ids.shape
    if cache is not None and not isinstance(cache, RecurrentCache):
        raise InvalidInputError(
            f"cache_params must be None or what an earlier call returned, not a {type(cache).__name__}"
        )
    if cache is not None and cache.batch_size != batch:
        raise InvalidInputError(f"cache_params holds {cache.batch_size} rows, but input_ids has {batch}")
    if attention_mask is None:
        return torch.ones((batch, length), dtype=torch.bool, device="cpu")
    whole = length if cache is None else length + cache.positions
    if attention_mask.ndim != 2 or len(attention_mask) != batch or attention_mask.shape[1] not in (length, whole):
        expected = f"({batch}, {length})" if whole == length else f"({batch}, {length}) or ({batch}, {whole})"
        raise InvalidInputError(f"attention_mask must be {expected}, but is {tuple(attention_mask.shape)}")
    return attention_mask[:, -length:].bool().cpu()


def steps(
    input_ids: Tensor, mask: Tensor, cache: RecurrentCache, *, max_tokens: int | None, keep: bool, device: torch.device
) -> Iterator[Step]:
    """The batch in order, at most `max_tokens` (but at least a column) at a time; None takes it all at once.

    Args:
        mask: bool (B, T) on the CPU, see `check_batch`.
        cache: which rows have a state; the caller moves it on between steps.
        keep: whether all states are wanted in the end, or only those that later steps of this call need.
        device: of the model.
    """
    batch, length = mask.shape
    last = length - 1 - mask.flip(1).int().argmax(dim=1)
    columns = torch.arange(length, device="cpu")
    for start, stop in _spans(mask, max_tokens):
        part = mask[:, start:stop]
        counts = part.sum(dim=1).tolist()
        held = set(cache.rows)
        rows = [row for row in range(batch) if counts[row] and row in held]
        n_carried = len(rows)
        rows += [row for row in range(batch) if counts[row] and row not in held]
        if not rows:
            continue
        later = set(range(batch)) if keep else set(torch.nonzero(mask.any(1) & (last >= stop)).flatten().tolist())
        final = [segment for segment, row in enumerate(rows) if row in later]
        chosen = part[rows]
        positions = (torch.tensor(rows, device="cpu")[:, None] * length + columns[start:stop])[chosen]
        yield Step(
            rows=rows,
            tokens=input_ids.flatten()[positions.to(input_ids.device)].to(device, torch.int64),
            packing=Packing([counts[row] for row in rows], n_carried=n_carried, wanted=final, device=device),
            positions=positions.to(device),
            later=later,
        )


def _spans(mask: Tensor, max_tokens: int | None) -> list[tuple[int, int]]:
    """Columns [start, stop) with at most `max_tokens` tokens, or one column that has more."""
    length = mask.shape[1]
    if max_tokens is None:
        return [(0, length)]
    total = list(accumulate(mask.sum(dim=0).tolist(), initial=0))
    spans, start = [], 0
    while start < length:
        stop = max(start + 1, bisect_right(total, total[start] + max_tokens) - 1)
        spans.append((start, stop))
        start = stop
    return spans
