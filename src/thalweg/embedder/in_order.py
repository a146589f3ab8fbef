"""Results in the order of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from thalweg.engine.results import Failure, Pooled


class ReorderBuffer:
    """Holds results back until all of earlier documents are out."""

    CAPACITY = 4096  # results held back before no further document is started

    def __init__(self) -> None:
        self._held: dict[int, list[Pooled | Failure]] = {}
        self._count = 0
        self._next = 0

    def __len__(self) -> int:
        """Results that are held."""
        return self._count

    def has_room(self) -> bool:
        return self._count < self.CAPACITY

    def is_early(self, document: int) -> bool:
        """Whether what a document gives now would have to be held, where there is no room for it."""
        return document != self._next and not self.has_room()

    def release(self, results: Iterable[Pooled | Failure]) -> Iterator[Pooled | Failure]:
        for result in results:
            self._held.setdefault(result.key, []).append(result)
            self._count += 1
            while self._next in self._held:
                ready = self._held.pop(self._next)
                self._count -= len(ready)
                yield from ready
                if not (isinstance(ready[-1], Failure) or ready[-1].last):
                    break
                self._next += 1
