"""The progress line of `thalweg bench`, and what it says of a point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thalweg.cli.console import Console, ProgressBar
from thalweg.cli.progress import duration
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.bench.runner import Status


@contextmanager
def bench_progress(console: Console, quiet: bool) -> Iterator[Callable[[Status], None]]:
    """A line that names the point under way, how many are done and the time left; without a terminal a line a point."""
    if quiet:
        yield lambda status: None
        return
    if not console.is_terminal:

        def tell(status: Status) -> None:
            if status.row is not None:
                what, result = told(status.row)
                console.print(f"{status.done} of {status.total}{_left(status)} · {what}: {result}")

        yield tell
        return
    with ProgressBar(console, "bar", "words") as bar:
        task = bar.add_task("starting", total=None)

        def follow(status: Status) -> None:
            title = status.point.title if status.point is not None else ""
            words = f"{status.done} of {counted(status.total, 'point')}{_left(status)} · {title}"
            bar.update(task, description=words, total=status.total, completed=status.done)

        yield follow


def told(row: dict[str, Any]) -> tuple[str, str]:
    """A point and its result in words."""
    from thalweg.bench.plot_series import disturbed, memory, seconds, single
    from thalweg.bench.point import OK, Point

    title = Point.from_json(row["point"]).title
    if row["status"] != OK:
        return title, f"{row['status']}: {row.get('message', '')}"
    rate = row["tokens_per_s"]["median"]
    share = f", {row['share_of_limit']['median']:.0%} of the limit" if "share_of_limit" in row else ""
    notes = ", one run only" * single(row)
    if disturbed(row):
        notes += f", while other programs used {row['other_cores']:.1f} of {row['machine']['cores']} cores"
    return title, f"{seconds(row):.3g} s per text, {rate:,.0f} tokens/s{share}, {memory(row):.2f} GiB{notes}"


def _left(status: Status) -> str:
    return "" if status.left is None else f", {duration(status.left)} left"
