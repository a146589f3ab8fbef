"""The kernels of segment.cpp: `tokenization/last_tokens.py` compiled, with its names and signatures."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.kernels.native.library import call

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Bpe:
    """See `last_tokens.Bpe`."""

    def __init__(self, merges: Int32, symbols: Int32, starts: Int64) -> None:
        self._handle = _create("bpe", merges, len(merges), symbols, starts, len(starts) - 1)
        weakref.finalize(self, call, "bpe_destroy", None, self._handle)

    def extend(self, symbols: Int32, tokens: Int32, lengths: Int32, before: int, begin: int) -> int:
        done = np.zeros(1, dtype=np.int64)
        _call("bpe_extend", self._handle, symbols, tokens, lengths, before, begin, len(symbols), done)
        return int(done[0])


class Unigram:
    """See `last_tokens.Unigram`."""

    def __init__(self, symbols: Int32, starts: Int64, scores: Float64, unknown: int, unknown_score: float) -> None:
        score = np.array([unknown_score])
        self._handle = _create("unigram", symbols, starts, scores, len(scores), unknown, score)
        weakref.finalize(self, call, "unigram_destroy", None, self._handle)

    def extend(self, symbols: Int32, tokens: Int32, lengths: Int32, best: Float64, begin: int) -> None:
        _call("unigram_extend", self._handle, symbols, tokens, lengths, best, begin, len(symbols))


def shared(lengths: Int32, live: int) -> Int32:
    """See `last_tokens.shared`."""
    ends, count = np.empty(len(lengths), dtype=np.int32), np.zeros(1, dtype=np.int64)
    _call("segment_shared", lengths, len(lengths), live, ends, count)
    return ends[: int(count[0])]


def _create(name: str, *arguments: Any) -> int:
    handle = np.zeros(1, dtype=np.int64)
    _call(f"{name}_create", *arguments, handle)
    return int(handle[0])


def _call(name: str, *arguments: npt.NDArray[Any] | int) -> None:
    call(name, None, *[_tensor(value) if isinstance(value, np.ndarray) else value for value in arguments])


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    assert array.flags.c_contiguous
    return torch.from_numpy(array)
