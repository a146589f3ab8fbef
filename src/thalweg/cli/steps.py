"""The progress line of commands whose work is a known number of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from thalweg.cli.console import Console, ProgressBar
from thalweg.cli.progress import duration


class Steps:
    """Follows the steps; `free` ones took no time, so they tell nothing about those to come."""

    def __init__(self, console: Console, total: int, bar: ProgressBar | None) -> None:
        self._console, self._total, self._bar = console, total, bar
        self._began = time.monotonic()
        self._done = self._paid = 0
        self._name = ""
        self._task = bar.add_task("starting", total=total) if bar else None

    def start(self, name: str) -> None:
        self._name = name + self._left()
        self.inside("")

    def inside(self, told: str) -> None:
        """How far the step that goes on is; shown on a terminal only."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=self._name + told)

    def end(self, told: str, *, free: bool = False) -> None:
        self._done += 1
        self._paid += not free
        self._console.print(f"[{self._done}/{self._total}] {told}")
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._done)

    def _left(self) -> str:
        if not self._paid:
            return ""
        seconds = (time.monotonic() - self._began) / self._paid * (self._total - self._done)
        return f" · about {duration(seconds)} left"


class _Silent(Steps):
    def start(self, name: str) -> None:
        pass

    def end(self, told: str, *, free: bool = False) -> None:
        pass


@contextmanager
def steps_shown(console: Console, total: int, shown: bool) -> Iterator[Steps]:
    """A line for each step that is done; on a terminal, below them a bar with the time left."""
    if not shown:
        yield _Silent(console, total, None)
        return
    if not console.is_terminal:
        yield Steps(console, total, None)
        return
    with ProgressBar(console, "bar", "count", "elapsed", "words") as bar:
        yield Steps(console, total, bar)
