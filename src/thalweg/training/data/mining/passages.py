"""A corpus of passages to search for negatives: any files with a text a row, to one memory-mapped Arrow file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.storage.checked import checksum
from thalweg.storage.durable import move_durably, sync_file, write_durably
from thalweg.training.data.build import row_hash
from thalweg.training.data.extras import require_datasets
from thalweg.training.data.files import read_rows
from thalweg.training.data.mining.work import Blocks
from thalweg.training.data.rows import passage_columns, read_passage
from thalweg.training.data.sources import Source

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 4 << 20


class Passages:
    """Texts by number, with their hashes (n,) uint64; those of a file, or of none at all."""

    def __init__(self, path: Path | None) -> None:
        self._texts: Any = None if path is None else require_datasets().Dataset.from_file(str(path))
        self.hashes: npt.NDArray[np.uint64] = (
            np.empty(0, np.uint64) if path is None else np.fromfile(path.with_suffix(".hashes"), np.uint64)
        )

    def texts(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        return self._texts[numbers]["text"] if len(numbers) else []


def write_passages(sources: list[Source], blocks: Blocks) -> Path:
    """Read a corpus into a file, unless it is there and whole. Rows without text are skipped.

    Raises:
        CorpusError: a row that cannot be used.
    """
    import pyarrow as pa

    path = blocks.folder / "corpus.arrow"
    sums = path.with_suffix(".sums.json")
    if sums.is_file():
        with suppress(ValueError):
            if _sums(path) == json.loads(sums.read_bytes()):
                return path
        blocks.remade.append(path.name)
    fresh = path.with_name(f"{path.name}.tmp")
    schema = pa.schema([("text", pa.string())])
    hashes = path.with_suffix(".hashes")
    with pa.ipc.new_stream(str(fresh), schema) as writer, hashes.open("wb") as keys:
        for texts in _batches(sources):
            writer.write_batch(pa.record_batch([pa.array(texts, pa.string())], schema=schema))
            np.array([row_hash(text) for text in texts], dtype=np.uint64).tofile(keys)
    sync_file(hashes)
    sync_file(fresh)
    move_durably(fresh, path)
    write_durably(sums, lambda stream: stream.write(json.dumps(_sums(path)).encode()))
    return path


def _sums(path: Path) -> list[int]:
    return [checksum(each) if each.is_file() else -1 for each in (path, path.with_suffix(".hashes"))]


def _batches(sources: list[Source]) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for source in sources:
        for file in source.files:
            for place, row in read_rows(file, passage_columns):
                text = read_passage(row, place)
                if not text.strip():
                    continue
                texts.append(text)
                characters += len(text)
                if len(texts) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
                    yield texts
                    texts, characters = [], 0
    if texts:
        yield texts
