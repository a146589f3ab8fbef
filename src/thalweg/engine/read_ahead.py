"""Input that may block, pulled by a thread of its own, so that nothing else waits for it."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

from thalweg.engine.sources import Answer, TokenArray

Item = TypeVar("Item")

GRACE = 0.05
"""Seconds for which an item is waited for, once in every pause. An input that does not really block is then always in
time: which documents share a step, and so the last bits of their vectors, does not depend on how threads take turns."""


class ReadAhead(Generic[Item]):
    """An iterable read by a thread, which stays at most `limit` items ahead.

    Args:
        items: pulled by the thread only. What it raises is raised by `poll` once the items before are gone.
        limit: items that are held.
        ready: called by the thread when an item has come, or the end.
    """

    def __init__(self, items: Iterable[Item], limit: int, ready: Callable[[], None]) -> None:
        self._items = items
        self._limit = limit
        self._ready = ready
        self._held: deque[Item] = deque()
        self._error: BaseException | None = None
        self._ended = self._closed = self._late = False
        self._changed = threading.Condition()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._read), name="thalweg-input", daemon=True)
        self._thread.start()

    def poll(self) -> tuple[Item | None, Answer]:
        """The next item and MORE, or None and whether there is nothing YET (WAITING) or nothing any more (ENDED)."""
        with self._changed:
            if not self._late:
                self._late = not self._changed.wait_for(self._is_ready, GRACE)
            if self._held:
                self._late = False
                item = self._held.popleft()
                self._changed.notify_all()
                return item, Answer.MORE
            if self._error is not None:
                error, self._error = self._error, None
                self._ended = True
                raise error
            return None, Answer.ENDED if self._ended else Answer.WAITING

    def _is_ready(self) -> bool:
        return bool(self._held or self._ended or self._error is not None)

    def close(self) -> None:
        """Nothing more is wanted. The thread ends when what it pulls at the moment has come."""
        with self._changed:
            self._closed = True
            self._held.clear()
            self._changed.notify_all()

    def _read(self) -> None:
        error: BaseException | None = None
        iterator: Iterator[Item] = iter(())
        try:
            iterator = iter(self._items)
            for item in iterator:
                with self._changed:
                    self._held.append(item)
                    self._changed.notify_all()
                self._ready()  # without the lock: it may wait for somebody who wants to close this
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._held) < self._limit)
                    if self._closed:
                        break
        except BaseException as caught:  # handed to whoever polls
            error = caught
        close = getattr(iterator, "close", None)
        if self._closed and close is not None:
            close()
        with self._changed:
            self._error = error
            self._ended = error is None
            self._changed.notify_all()
        self._ready()


class BlockingSource:
    """A token source whose ids are made by a thread, as what they come from may block.

    Args:
        pull: the next ids, at most as many as asked for, and whether they are the last.
    """

    BLOCK = 512
    """Ids that are pulled at a time."""
    AHEAD = 2
    """Blocks that are held."""

    def __init__(self, pull: Callable[[int], tuple[TokenArray, bool]]) -> None:
        self._pull = pull
        self._wake: Callable[[], None] = lambda: None
        self._blocks: ReadAhead[TokenArray] | None = None
        self._rest: TokenArray = np.empty(0, dtype=np.int64)
        self._answer = Answer.MORE

    def subscribe(self, wake: Callable[[], None]) -> None:
        """See `TokenSource`."""
        self._wake = wake

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        if self._blocks is None:
            self._blocks = ReadAhead(self._pulled(), self.AHEAD, lambda: self._wake())
        found = [self._rest]
        count = len(self._rest)
        while count <= n and self._answer is not Answer.ENDED:  # one more than n shows the end
            block, self._answer = self._blocks.poll()
            if block is None:
                break
            found.append(block)
            count += len(block)
        ids = np.concatenate(found)
        self._rest = ids[n:]
        if len(self._rest):
            return ids[:n], Answer.MORE
        if self._answer is Answer.MORE:
            return ids[:n], Answer.WAITING
        return ids[:n], self._answer

    def close(self) -> None:
        """See `TokenSource`."""
        if self._blocks is not None:
            self._blocks.close()

    def _pulled(self) -> Iterator[TokenArray]:
        last = False
        while not last:
            ids, last = self._pull(self.BLOCK)
            yield ids
