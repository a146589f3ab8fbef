"""The progress bar of `Embedder.encode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thalweg.engine.results import Progress


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar over documents with the rate in tokens; yields what `encode_stream` calls after every step."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding", total=total, rate="")
        began = time.perf_counter()

        def report(progress: Progress) -> None:
            rate = progress.tokens / (time.perf_counter() - began)
            bar.update(task, completed=progress.documents, rate=f"{rate:,.0f} tokens/s")

        yield report
