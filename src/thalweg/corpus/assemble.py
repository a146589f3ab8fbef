"""The last act of a run: saved rows, in any order, to the output in the order of the input."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thalweg.corpus.manifest import Manifest
from thalweg.corpus.parts import Parts
from thalweg.corpus.report import ReportedFailure, Status, Summary
from thalweg.corpus.rows import COLUMNS, Metadata, vectors_of
from thalweg.corpus.settings import Settings
from thalweg.corpus.writers import write_output
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CorpusError
from thalweg.version import __version__

OUTPUT_ROWS = 1024
"""Rows put together at a time."""


def assemble(
    out: Path,
    parts: Parts,
    settings: Settings,
    embedder: Embedder,
    manifest: Manifest,
    status: Status,
    shown: tuple[ReportedFailure, ...],
    began: float,
) -> Summary:
    """Write the output from the parts and drop them. Documents that failed midway leave no rows.

    Raises:
        CorpusError: there is nothing to write.
    """
    index = parts.index()
    with_ranges = settings.precision in ("int8", "uint8")
    totals = _Totals.of(parts.batches(index, ["n_tokens", "key_cut", "vector"], OUTPUT_ROWS), with_ranges)
    if not totals.rows:
        parts.remove()
        reasons = "; ".join(f"{told.id}: {told.reason}" for told in shown[:3])
        raise CorpusError(f"no document could be embedded, so {out} is not written ({reasons})")
    metadata = Metadata(
        model=settings.model,
        revision=settings.revision,
        fingerprint=embedder.fingerprint,
        dimension=settings.dimension(embedder),
        precision=settings.precision,
        normalized=settings.normalized(embedder),
        similarity=embedder.embedding_config.similarity,
        prompt=settings.document_prompt(embedder),
        section_size=settings.section_size,
        version=__version__,
        rows=totals.rows,
        documents=int(index.complete[index.documents()].sum()),
        tokens=totals.tokens,
        failed=status.failed,
        ranges=totals.ranges,
        run=manifest.summary(),
    )
    columns = [name for name in COLUMNS if settings.with_text or name != "text"]
    batches = parts.batches(index, [*columns, "vector"], OUTPUT_ROWS)
    write_output(out, parts.folder, metadata, batches, with_text=settings.with_text)
    parts.remove()
    return Summary(
        documents=metadata.documents,
        rows=metadata.rows,
        tokens=metadata.tokens,
        failed=status.failed,
        skipped=status.skipped,
        cut=totals.cut,
        saved=status.saved,
        new_tokens=status.tokens,
        seconds=time.monotonic() - began,
        shown=shown,
    )


class _Totals(NamedTuple):
    """What has to be known of all rows before the first is written."""

    rows: int
    tokens: int
    cut: int
    ranges: list[list[float]] | None

    @classmethod
    def of(cls, batches: Iterable[Any], with_ranges: bool) -> _Totals:
        rows = tokens = cut = 0
        ranges = None
        for batch in batches:
            rows += batch.num_rows
            tokens += int(batch.column("n_tokens").to_numpy().sum())
            cut += batch.column("key_cut").true_count
            if with_ranges:
                vectors = vectors_of(batch.column("vector"))
                extremes = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
                ranges = extremes if ranges is None else _widest(ranges, extremes)
        return cls(rows, tokens, cut, None if ranges is None else ranges.tolist())


def _widest(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.minimum(a[0], b[0]), np.maximum(a[1], b[1])])
