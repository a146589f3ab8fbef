"""Vectors on the disk, in blocks that each survive a crash: `NAME-00000.npy`, …"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.pooling.vectors import FloatArray
from thalweg.storage.durable import write_durably

BLOCK = 2048
"""Vectors of a file; so many texts are in memory at a time, and a crash costs no more than that many."""


class Block(NamedTuple):
    """Vectors (n, d) float32, memory-mapped, of the items from `begin` on."""

    begin: int
    vectors: FloatArray


class VectorStore:
    """(n, dimension) float32 vectors.

    Args:
        folder, name: of the files; n: vectors when it is complete.
    """

    def __init__(self, folder: Path, name: str, n: int, dimension: int) -> None:
        self._folder, self._name, self._n, self._dimension = folder, name, n, dimension

    def __len__(self) -> int:
        return self._n

    def fill(
        self,
        texts: Callable[[int, int], Sequence[str]],
        encode: Callable[[Sequence[str]], FloatArray],
        on_block: Callable[[int], None],
    ) -> None:
        """Make the blocks that are not there yet.

        Args:
            texts: (begin, end) → the texts of these items; encode: them → (n, dimension); on_block: told how many
                vectors there are.
        """
        for begin in range(0, self._n, BLOCK):
            end = min(begin + BLOCK, self._n)
            path = self._path(begin)
            if not path.is_file():
                vectors = np.ascontiguousarray(encode(texts(begin, end)), np.float32)
                assert vectors.shape == (end - begin, self._dimension)
                write_durably(path, lambda stream, block=vectors: np.save(stream, block))  # type: ignore[misc]
            on_block(end)

    def blocks(self) -> Iterator[Block]:
        """All vectors, in order."""
        for begin in range(0, self._n, BLOCK):
            yield Block(begin, self._load(begin))

    def rows(self, numbers: npt.NDArray[np.int64]) -> FloatArray:
        """(m, dimension): the vectors of these items, in memory."""
        found = np.empty((len(numbers), self._dimension), np.float32)
        block_of = numbers // BLOCK
        for number in np.unique(block_of):
            wanted = block_of == number
            found[wanted] = self._load(int(number) * BLOCK)[numbers[wanted] - number * BLOCK]
        return found

    def _path(self, begin: int) -> Path:
        return self._folder / f"{self._name}-{begin // BLOCK:05d}.npy"

    def _load(self, begin: int) -> FloatArray:
        return np.asarray(np.load(self._path(begin), mmap_mode="r"))
