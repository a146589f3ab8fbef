"""Vectors on the disk, in blocks that each survive a crash: `NAME-00000-CHECKSUM.npy`, …"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.pooling.vectors import FloatArray
from thalweg.training.data.mining.work import Blocks

BLOCK = 2048
"""Vectors of a file; so many texts are in memory at a time, and a crash costs no more than that many."""


class Block(NamedTuple):
    """Vectors (n, d) float32, memory-mapped, of the items from `begin` on."""

    begin: int
    vectors: FloatArray


class VectorStore:
    """(n, dimension) float32 vectors.

    Args:
        blocks: of the work folder; name: of these; n: vectors when it is complete.
    """

    def __init__(self, blocks: Blocks, name: str, n: int, dimension: int) -> None:
        self._blocks, self._name, self._n, self._dimension = blocks, name, n, dimension

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
            if not self._blocks.has(self._block(begin)):
                vectors = np.ascontiguousarray(encode(texts(begin, end)), np.float32)
                assert vectors.shape == (end - begin, self._dimension)
                data = io.BytesIO()
                np.save(data, vectors)
                self._blocks.write(self._block(begin), data.getbuffer())
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

    def _block(self, begin: int) -> str:
        return f"{self._name}-{begin // BLOCK:05d}.npy"

    def _load(self, begin: int) -> FloatArray:
        return np.asarray(np.load(self._blocks.path(self._block(begin)), mmap_mode="r"))
