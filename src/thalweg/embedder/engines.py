"""The engines of an embedder: calls that run at the same time share one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from thalweg.engine.engine import Engine
from thalweg.engine.schedule import Schedule
from thalweg.pooling import Pooling
from thalweg.system.forked import compute_in_forked_process, reset_when_forked


class Engines:
    """One engine for every schedule in use; it goes with the last call that uses it, and its states with it."""

    def __init__(self) -> None:
        self.reset()
        reset_when_forked(self)

    def reset(self) -> None:
        """Begin without any engine."""
        self._lock = threading.RLock()  # the garbage collector may end a call while another one is in here
        self._engines: dict[tuple[Schedule, Pooling], Engine] = {}
        self._users: dict[tuple[Schedule, Pooling], int] = {}

    @contextmanager
    def use(
        self, schedule: Schedule, pooling: Pooling, make: Callable[[Schedule, Pooling], Engine]
    ) -> Iterator[Engine]:
        """The engine of a schedule, made by `make` where there is none."""
        compute_in_forked_process()
        key = (schedule, pooling)
        with self._lock:
            self._users[key] = self._users.get(key, 0) + 1
        try:
            with self._lock:
                if key not in self._engines:
                    self._engines[key] = make(schedule, pooling)
                engine = self._engines[key]
            yield engine
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._engines.pop(key, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engines:
        return Engines()

    def __reduce__(self) -> tuple[type[Engines], tuple[()]]:
        return Engines, ()
