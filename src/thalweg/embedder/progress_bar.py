"""The progress bar of `Embedder.encode`: tqdm's, as in sentence-transformers. In a notebook it is a widget, or text
where there are no widgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thalweg.engine.results import Progress


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar over texts with the rate in tokens; yields what `encode_stream` calls after every step."""
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Embedding", unit="text") as bar:
        began = drawn = time.perf_counter()

        def report(progress: Progress) -> None:
            nonlocal drawn
            now = time.perf_counter()
            bar.n = progress.documents
            bar.set_postfix_str(f"{progress.tokens / (now - began):,.0f} tokens/s", refresh=False)
            if now - drawn >= bar.mininterval:  # also in the middle of a long text, when no text has been finished
                bar.refresh()
                drawn = now

        yield report
