"""A toy model that is no language model at all: it knows the protocol, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.engine.sources import TokenArray
from thalweg.models.protocol import State
from thalweg.packing import Packing


class Count(NamedTuple):
    """(S, 2): tokens so far and their weighted sum."""

    seen: Tensor


class Toy:
    """hidden[t] = (tokens of this document so far, sum of id * position): any mix-up of states shows at once."""

    d_model = 2
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.steps: list[Packing] = []
        self.most_states = 0

    def init_state(self, n_segments: int) -> State:
        return (Count(torch.zeros(n_segments, 2, dtype=torch.float64)),)

    def activation_blocks(self, n_tokens: int) -> list[int]:
        return []

    def forward(
        self,
        tokens: Tensor,
        packing: Packing,
        state: State | None = None,
        rows: Sequence[int] | None = None,
        out: State | None = None,
    ) -> tuple[Tensor, State]:
        self.steps.append(packing)
        hidden = torch.empty(len(tokens), 2, dtype=torch.float64)
        for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
            seen = torch.zeros(2, dtype=torch.float64)
            if segment < packing.n_carried:
                assert state is not None
                seen = state[0].seen[packing.carried_rows[segment]]
            count = seen[0] + torch.arange(1, stop - start + 1)
            hidden[start:stop, 0] = count
            hidden[start:stop, 1] = seen[1] + (tokens[start:stop] * count).cumsum(0)
        final = hidden[[packing.last_rows[segment] for segment in packing.wanted]]
        self.most_states = max(self.most_states, len(final))
        assert out is not None
        out[0].seen.copy_(final)
        return (hidden if rows is None else hidden[list(rows)]).float(), out


def expected(ids: TokenArray, pooling: str) -> np.ndarray:
    count = np.arange(1, len(ids) + 1)
    hidden = np.stack([count, np.cumsum(ids * count)], axis=1)
    return hidden[-1] if pooling == "last" else hidden.mean(axis=0)


def ids_of(length: int, seed: int) -> TokenArray:
    return np.random.default_rng(seed).integers(1, 9, length)
