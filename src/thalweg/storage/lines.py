"""Logs of JSON lines: a line is on the disk before it counts, and none is ever changed.

A process that is killed leaves at most one unfinished line at the end of a file. Readers skip it, and it is cut off
when the file is next opened for writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

from thalweg.errors import CorpusError
from thalweg.storage.durable import errors_named, sync_folder

Record: TypeAlias = dict[str, Any]


class Lines(AbstractContextManager["Lines"]):
    """A file of JSON objects, one a line, that is appended to. Made if it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        new = not path.exists()
        self._writer = open(path, "ab+", buffering=0)  # noqa: SIM115 - nothing is left in a buffer if a write fails
        self._reader = open(path, "rb")  # noqa: SIM115
        if new:
            sync_folder(path.parent)
        _cut_torn_line(self._writer)

    def append(self, *records: Record) -> int:
        """Write records behind the others and sync them; the place of the first.

        Raises:
            OSError: they could not be written, and none of them is there.
        """
        place = self._writer.seek(0, os.SEEK_END)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        left = memoryview(text.encode("utf-8", "surrogatepass"))
        with errors_named(self._path):
            try:
                while left:
                    left = left[self._writer.write(left) :]
                os.fsync(self._writer.fileno())
            except BaseException:
                self._writer.truncate(place)
                raise
        return place

    def read(self, place: int) -> Record:
        """The record at a place.

        Raises:
            CorpusError: there is none.
        """
        self._reader.seek(place)
        return _parsed(self._path, self._reader.readline(), place)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Places and records, from the first on; as `read_lines`."""
        return read_lines(self._path)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Places and records of a log, from the first on; none where there is no file.

    Raises:
        CorpusError: a whole line that is no JSON object: the file was changed by something else.
    """
    place = 0
    with suppress(FileNotFoundError), open(path, "rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield place, _parsed(path, line, place)
            place += len(line)


def _parsed(path: Path, line: bytes, place: int) -> Record:
    with suppress(ValueError, RecursionError):
        record = json.loads(line.decode("utf-8", "surrogatepass"))
        if isinstance(record, dict):
            return record
    raise CorpusError(
        f"{path} holds something else than a record at byte {place:,}: {line[:60]!r}; take that line out, "
        "and what it held is made again"
    )


def _cut_torn_line(stream: FileIO) -> None:
    end = stream.seek(0, os.SEEK_END)
    start = end
    while start:  # the last line break, looked for from the end
        size = min(start, 1 << 16)
        start = stream.seek(start - size)
        found = stream.read(size).rfind(b"\n")
        if found >= 0:
            start += found + 1
            break
    if start < end:
        stream.truncate(start)
        os.fsync(stream.fileno())
