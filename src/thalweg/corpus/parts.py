"""The work folder of a run: finished rows in small files that survive a crash, until the output is put together.

`OUT.parts/` is a `WorkFolder` that holds
    manifest.json     settings and a digest of the inputs
    inputs.jsonl      the input files with sizes and times
    part-*.arrow      finished rows: one record batch each, never touched again, with a checksum in the name
    state-*           where long documents stand that are under way, see `states.py`
    failures.jsonl    what could not be read; made anew by every run, as failed documents are tried again
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thalweg.corpus.index import KEY_COLUMNS, Index
from thalweg.corpus.manifest import Manifest
from thalweg.corpus.rows import Row, list_column
from thalweg.corpus.writers import FAILURES
from thalweg.errors import CorpusError
from thalweg.storage.checked import is_whole, mapped, write_checked
from thalweg.storage.work_folder import WorkFolder, has_begun

INPUTS = "inputs.jsonl"

STATES = "state-*.safetensors"
"""Pattern of the names of states."""

PART_ROWS = 2048
PART_CHARACTERS = 4 << 20
"""A part is written when it holds this much, or when it is old enough."""

BATCH_ROWS, BATCH_BYTES = 1024, 16 << 20
"""Rows put together at a time for the output, and bytes of their texts."""

_PART = re.compile(r"part-(\d{8})-[0-9a-f]{8}\.arrow")
_CONTENTS = ("part-*.arrow", STATES, "*.tmp", INPUTS, FAILURES)
_OPEN_PARTS = 64


class Slice(NamedTuple):
    """Rows of the output that stand together: their numbers in the `Index`, and a record batch."""

    numbers: npt.NDArray[np.integer]
    batch: Any


class Parts:
    """A work folder in use by this process.

    Args:
        folder: beside the output.
        schema: of the rows, see `part_schema`.
        save_every: seconds after which finished rows are written even if they are few.

    `n_saved` rows survive from here on, those of earlier runs included.
    """

    def __init__(self, folder: Path, schema: pa.Schema, save_every: float) -> None:
        self.folder = folder
        self._schema = schema
        self._save_every = save_every
        self.n_saved = 0
        self._rows: list[Row] = []
        self._characters = 0
        self._obsolete: list[Path] = []
        self._saved_at = time.monotonic()
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._work = WorkFolder(folder, _CONTENTS)
        self._paths = sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))

    @staticmethod
    def exist(folder: Path) -> bool:
        """Whether an unfinished run has left its rows there."""
        return has_begun(folder)

    @staticmethod
    def sweep(folder: Path) -> None:
        """Remove what a crash has left of a folder whose rows are all in the output."""
        if folder.is_dir():
            with WorkFolder(folder, _CONTENTS) as work:
                if not work.begun:
                    work.drop()

    def begin(self, manifest: Manifest) -> None:
        """Make the folder a new run's, dropping what an earlier one left."""
        self._forget()
        self._work.begin(manifest.summary(), lambda: manifest.write_inputs(self.folder / INPUTS))

    def resume(self, manifest: Manifest) -> list[str]:
        """Go on with the run that left the folder; the names of parts that were damaged, and are made again.

        Raises:
            CorpusError: that run had other settings or inputs.
        """
        manifest.check_settings(self._work.manifest(), str(self.folder))
        manifest.check_inputs(self.folder / INPUTS)
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        damaged = [path for path in self._paths if not is_whole(path)]
        for path in damaged:
            path.unlink()
            self._paths.remove(path)
        self.n_saved = sum(self._batch(path).num_rows for path in self._paths)
        return [path.name for path in damaged]

    def append(self, row: Row, obsolete: Path | None = None) -> None:
        """Add a finished row. obsolete: a file that is not needed any more once the row is saved."""
        self._rows.append(row)
        if obsolete is not None:
            self._obsolete.append(obsolete)
        self._characters += len(row.text)
        if len(self._rows) >= PART_ROWS or self._characters >= PART_CHARACTERS:
            self.save()
        else:
            self.save_if_due()

    def save_if_due(self) -> None:
        """Write the rows of the last seconds; to be called now and then while none come."""
        if self._rows and time.monotonic() - self._saved_at >= self._save_every:
            self.save()

    def save(self) -> None:
        """Write what is not written yet; it survives from here on."""
        if self._rows:
            last = int(self._paths[-1].name[len("part-") :][:8]) if self._paths else 0
            data = _serialised(_batch(self._rows, self._schema))
            self._paths.append(write_checked(self.folder / f"part-{last + 1:08d}.arrow", data))
            self.n_saved += len(self._rows)
            self._rows, self._characters = [], 0
            for path in self._obsolete:
                path.unlink(missing_ok=True)
            self._obsolete = []
        self._saved_at = time.monotonic()

    def index(self) -> Index:
        """Where every saved row lies."""
        return Index.build(
            (self._batch(path).select(KEY_COLUMNS), _text_sizes(self._batch(path))) for path in self._paths
        )

    def slices(self, index: Index, columns: list[str]) -> Iterator[Slice]:
        """The rows of complete documents in the order of the output, some at a time."""
        for numbers in index.slices(BATCH_ROWS, BATCH_BYTES):
            yield Slice(numbers, self.take(index, numbers, columns))

    def take(self, index: Index, numbers: npt.NDArray[np.integer], columns: list[str]) -> Any:
        """Some rows, in the order of their numbers in the index, as a record batch."""
        part, at = index.part[numbers], index.at[numbers]
        edges = np.flatnonzero(np.diff(part)) + 1
        taken = [
            self._batch(self._paths[int(part[run[0]])]).select(columns).take(pa.array(at[run]))
            for run in np.split(np.arange(len(part)), edges)
        ]
        (batch,) = pa.Table.from_batches(taken).combine_chunks().to_batches()
        return batch

    def remove(self) -> None:
        """The output is there: drop the folder."""
        self._forget()
        self._work.drop()

    def remove_if_empty(self) -> None:
        """Drop the folder if no row and no state was ever saved: there is nothing to go on with."""
        if not self._paths and not self.has_states:
            self.remove()

    @property
    def has_states(self) -> bool:
        """Whether documents that are under way have left where they stand."""
        return any(True for _ in self.folder.glob(STATES))

    def close(self) -> None:
        """Let other processes have the folder."""
        self._open.clear()
        self._work.close()

    def _forget(self) -> None:
        """Let go of the files that are about to be removed."""
        self._open.clear()
        self._paths = []

    def _batch(self, path: Path) -> Any:
        """One part, memory-mapped; a bounded number of them is kept open."""
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = self._read(path)
            if len(self._open) > _OPEN_PARTS:
                self._open.popitem(last=False)
        return self._open[path]

    def _read(self, path: Path) -> Any:
        try:
            batch = pa.ipc.open_file(pa.py_buffer(mapped(path))).get_batch(0)
        except (pa.ArrowInvalid, ValueError) as error:
            raise CorpusError(f"{path} was damaged while the run went on ({error}); --resume makes it again") from error
        if not batch.schema.equals(self._schema):
            raise CorpusError(f"{path} has other columns than this run writes; start over with --overwrite")
        return batch


def _batch(rows: list[Row], schema: pa.Schema) -> Any:
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    vectors = list_column(np.stack(columns.pop("vector")))
    arrays = [pa.array(columns[field.name], field.type) for field in schema if field.name != "vector"]
    return pa.record_batch([*arrays, vectors], schema=schema)


def _serialised(batch: Any) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _text_sizes(batch: Any) -> npt.NDArray[np.integer]:
    if "text" not in batch.schema.names:
        return np.zeros(batch.num_rows, np.int32)
    return pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False)
