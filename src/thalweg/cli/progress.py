"""The progress line of `thalweg embed`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thalweg.cli.console import Console, ProgressBar
from thalweg.system.resident import resident_bytes
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.corpus import Status

LOG_EVERY = 60.0
"""Seconds between lines where there is no terminal to redraw one on."""


@contextmanager
def progress_line(console: Console, shown: bool) -> Iterator[Callable[[Status], None]]:
    """A line that follows a run: documents, tokens, tokens/s, time left and memory. In a log file, one every minute."""
    began = time.monotonic()
    if not shown:
        yield lambda status: None
        return
    if not console.is_terminal:
        told = [began]

        def tell(status: Status) -> None:
            now = time.monotonic()
            if now - told[0] >= LOG_EVERY:
                told[0] = now
                console.print(describe(status, now - began))

        yield tell
        return
    with ProgressBar(console, "bar", "words") as bar:
        task = bar.add_task("starting", total=None)

        def follow(status: Status) -> None:
            known = status.n_bytes is not None
            bar.update(
                task,
                description=describe(status, time.monotonic() - began),
                total=status.n_bytes if known else None,
                completed=status.meter.read + status.meter.passed if known else 0,
            )

        yield follow


def describe(status: Status, seconds: float) -> str:
    """The words of the line."""
    if status.writing:
        return "writing the output"
    documents = counted(status.documents, "document")
    if status.n_documents is not None:
        documents = f"{status.documents:,} of {counted(status.n_documents, 'document')}"
    words = [documents]
    if status.failed or status.skipped:
        words.append(f"{status.failed:,} failed, {status.skipped:,} skipped")
    words.append(f"{counted(status.tokens, 'token')}, {status.tokens / max(seconds, 1e-9):,.0f}/s")
    left = _seconds_left(status, seconds)
    if left is not None:
        words.append(f"{duration(left)} left")
    memory = resident_bytes()
    if memory is not None:
        words.append(f"{memory / 2**30:.1f} GiB")
    return " · ".join(words)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _seconds_left(status: Status, seconds: float) -> float | None:
    """By the bytes read in this run; those that were skipped as done before say nothing about its speed."""
    if status.n_bytes is None or not status.meter.read:
        return None
    left = status.n_bytes - status.meter.passed - status.meter.read
    return seconds * left / status.meter.read
