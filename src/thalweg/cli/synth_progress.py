"""The progress line of `thalweg synth`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thalweg.cli.console import Console, ProgressBar
from thalweg.cli.progress import LOG_EVERY, duration
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.synthesis.run import Status

Price = tuple[float, float] | None


class SynthProgress:
    """Follows a run: on a terminal in one line that is redrawn, else a line a minute."""

    def __init__(self, console: Console, price: Price, bar: ProgressBar | None, shown: bool) -> None:
        self._console, self._price, self._bar, self._shown = console, price, bar, shown
        self._began = self._told = time.monotonic()
        self._examples_began: float | None = None
        self._task = bar.add_task("starting", total=None) if bar else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def follow(self, status: Status) -> None:
        now = time.monotonic()
        if status.step == "examples" and self._examples_began is None:
            self._examples_began = now
        if self._bar and self._task is not None:
            words = describe(status, self._price, self._left(status))
            self._bar.update(self._task, description=words, total=status.wanted, completed=status.accepted)
        elif self._shown and now - self._told >= LOG_EVERY:
            self._told = now
            self._console.print(describe(status, self._price, self._left(status)))

    def _left(self, status: Status) -> float | None:
        """By the examples of this sitting, from its first one on."""
        done = status.accepted - status.before
        if self._examples_began is None or done <= 0:
            return None
        left = status.wanted - status.accepted - status.given_up
        return (time.monotonic() - self._examples_began) / done * left


@contextmanager
def synth_progress(console: Console, price: Price, shown: bool) -> Iterator[SynthProgress]:
    """Progress of a run on a console."""
    if not shown or not console.is_terminal:
        yield SynthProgress(console, price, None, shown)
        return
    with ProgressBar(console, "bar", "words") as bar:
        yield SynthProgress(console, price, bar, shown)


def describe(status: Status, price: Price, left: float | None) -> str:
    """The words of the line."""
    if status.step == "tasks":
        words = [f"thinking up tasks for {', '.join(list(status.tasks_wanted)[-1:])}"]
    elif status.step == "examples":
        words = [f"{status.accepted:,} of {counted(status.wanted, 'example')}"]
    else:
        words = [status.step]
    if status.rejected:
        words.append(f"{status.rejected.total():,} rejected")
    words.append(usage(status, price))
    if left is not None and status.step == "examples":
        words.append(f"{duration(left)} left")
    return " · ".join(words)


def usage(status: Status, price: Price) -> str:
    """Tokens, and what they cost."""
    about = "about " if status.estimated else ""
    words = f"{about}{status.prompt_tokens:,} + {counted(status.reply_tokens, 'token')}"
    cost = status.cost(price)
    return words if cost is None else f"{words}, cost {about}{cost:,.2f}"
