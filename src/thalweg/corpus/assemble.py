"""The last act of a run: saved rows, in any order, to the output in the order of the input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from thalweg.corpus.index import Index
from thalweg.corpus.keys import Keys
from thalweg.corpus.manifest import Manifest
from thalweg.corpus.parts import Parts, Slice
from thalweg.corpus.report import SHOWN, ReportedFailure, Status, Summary
from thalweg.corpus.rows import COLUMNS, KEY, Metadata, vectors_of
from thalweg.corpus.settings import Settings
from thalweg.corpus.writers import write_output
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CorpusError
from thalweg.version import __version__


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
        CorpusError: there is nothing to write; or ids repeat, if strict.
    """
    index = parts.index()
    rows = _Rows(parts, index, settings)
    if not rows.n:
        parts.remove()
        reasons = "; ".join(f"{told.id}: {told.reason}" for told in shown[:3])
        raise CorpusError(f"no document could be embedded, so {out} is not written ({reasons})")
    if rows.repeated and settings.strict:
        raise CorpusError(
            f"{rows.repeated:,} documents have the id of an earlier one ({', '.join(map(repr, rows.repeated_ids))}), "
            "and --strict refuses that; give them ids of their own, or --resume without --strict: keys tell them apart"
        )
    metadata = describe_output(
        settings,
        embedder,
        manifest,
        rows=rows.n,
        documents=int(index.complete[index.documents()].sum()),
        tokens=rows.tokens,
        failed=status.failed,
        ranges=rows.ranges,
    )
    write_output(out, parts.folder, metadata, rows.batches(), with_text=settings.with_text)
    parts.remove()
    return Summary(
        documents=metadata.documents,
        rows=metadata.rows,
        tokens=metadata.tokens,
        failed=status.failed,
        skipped=status.skipped,
        cut=rows.cut,
        saved=status.saved,
        new_tokens=status.tokens,
        seconds=time.monotonic() - began,
        shown=shown,
        files=status.files,
        table_rows=status.meter.rows,
        table_rows_failed=status.table_rows_failed,
        notes=tuple(status.notes),
        n_notes=status.n_notes,
        repeated=rows.repeated,
        repeated_ids=rows.repeated_ids,
        remade=status.remade,
    )


def describe_output(
    settings: Settings,
    embedder: Embedder,
    manifest: Manifest,
    *,
    rows: int,
    documents: int,
    tokens: int,
    failed: int,
    ranges: list[list[float]] | None = None,
) -> Metadata:
    """What an output says about itself."""
    model, revision = settings.model_named(embedder)
    return Metadata(
        model=model,
        revision=revision,
        fingerprint=embedder.fingerprint,
        dimension=settings.dimension(embedder),
        precision=settings.precision,
        normalized=settings.normalized(embedder),
        similarity=embedder.embedding_config.similarity,
        prompt=settings.document_prompt(embedder),
        section_size=settings.section_tokens,
        version=__version__,
        rows=rows,
        documents=documents,
        tokens=tokens,
        failed=failed,
        ranges=ranges,
        run=manifest.summary(),
    )


class _Rows:
    """The rows of the output.

    n, tokens, cut, ranges: what has to be known of all of them before the first is written; repeated, repeated_ids:
    documents with the id of an earlier one, and the first few of these ids.
    """

    def __init__(self, parts: Parts, index: Index, settings: Settings) -> None:
        self._parts, self._index, self._settings = parts, index, settings
        self.n = int(index.complete.sum())
        self.tokens = self.cut = 0
        ranges = None
        starts = np.zeros(len(index.row), bool)
        starts[index.documents()] = True
        starts &= index.complete
        self._document = np.cumsum(starts) - 1  # of each row of a complete document
        self._keys = Keys(int(starts.sum()))
        for numbers, batch in parts.slices(index, ["id", "n_tokens", "key_cut", "vector"]):
            self.tokens += int(batch.column("n_tokens").to_numpy().sum())
            self.cut += batch.column("key_cut").true_count
            if settings.precision in ("int8", "uint8"):
                vectors = vectors_of(batch.column("vector"))
                extremes = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
                ranges = extremes if ranges is None else _widest(ranges, extremes)
            first = np.flatnonzero(starts[numbers])
            if len(first):
                ids = batch.column("id").take(pa.array(first)).to_pylist()
                self._keys.learn(int(self._document[numbers[first[0]]]), ids)
        self.ranges: list[list[float]] | None = None if ranges is None else ranges.tolist()
        repeated = self._keys.finish()
        self.repeated = len(repeated)
        self.repeated_ids: tuple[str, ...] = ()
        if self.repeated:
            named = parts.take(index, np.flatnonzero(starts)[repeated[:SHOWN]], ["id"]).column("id").to_pylist()
            self.repeated_ids = tuple(dict.fromkeys(named))

    def batches(self) -> Iterator[Any]:
        """All of them, with the output's columns and float32 vectors."""
        columns = [name for name in COLUMNS if name != KEY and (self._settings.with_text or name != "text")]
        for numbers, batch in self._parts.slices(self._index, [*columns, "vector"]):
            keys = pa.array(self._keys_of(Slice(numbers, batch)), COLUMNS[KEY])
            yield pa.record_batch([keys, *batch.columns], names=[KEY, *batch.schema.names])

    def _keys_of(self, rows: Slice) -> list[str]:
        sections = rows.batch.column("section").to_pylist()
        if self._settings.cut is None:
            sections = [None] * len(sections)
        ids = rows.batch.column("id").to_pylist()
        documents = self._document[rows.numbers].tolist()
        return [self._keys.key(*each) for each in zip(documents, ids, sections, strict=True)]


def _widest(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.minimum(a[0], b[0]), np.maximum(a[1], b[1])])
