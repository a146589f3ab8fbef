"""What came back, on the disk before it counts: one line a record, synced, never changed.

A process that is killed leaves at most one unfinished line at the end of a file; it is cut off when the file is next
opened, and what it held is asked for again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from thalweg.errors import CorpusError
from thalweg.storage.durable import hold, sync_folder, write_durably
from thalweg.synthesis.tasks import TASK_TYPES

MANIFEST = "manifest.json"
LINES = ("tasks", "examples", "rejected")
DATA, MINED, PAIRS, REPORT = "data", "mined", "pairs.jsonl", "report.json"
"""The result: a folder with a file for each type, what was mined for them, graded pairs, and the counts of the run."""


class Lines:
    """A JSONL file that is appended to.

    Raises:
        CorpusError: a line before the last is no JSON object: the file was changed by something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        new = not path.exists()
        self._stream = open(path, "ab+")  # noqa: SIM115
        if new:
            sync_folder(path.parent)
        self._mend()

    def append(self, *records: dict[str, Any]) -> int:
        """Write records behind the others and sync them; the place of the first."""
        place = self._stream.seek(0, os.SEEK_END)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._stream.write(text.encode("utf-8", "surrogatepass"))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return place

    def read(self, place: int) -> dict[str, Any]:
        """The record at a place."""
        self._stream.seek(place)
        return self._parsed(self._stream.readline(), place)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Places and records, from the first on."""
        place = 0
        with open(self._path, "rb") as stream:
            for line in stream:
                yield place, self._parsed(line, place)
                place += len(line)

    def close(self) -> None:
        self._stream.close()

    def _mend(self) -> None:
        end = self._stream.seek(0, os.SEEK_END)
        start = end
        while start:  # the last line break, looked for from the end
            size = min(start, 1 << 16)
            start = self._stream.seek(start - size)
            found = self._stream.read(size).rfind(b"\n")
            if found >= 0:
                start += found + 1
                break
        if start < end:
            self._stream.truncate(start)
            os.fsync(self._stream.fileno())

    def _parsed(self, line: bytes, place: int) -> dict[str, Any]:
        with suppress(ValueError):
            record = json.loads(line.decode("utf-8", "surrogatepass"))
            if isinstance(record, dict):
                return record
        raise CorpusError(
            f"{self._path} holds something else than a record at byte {place:,}: {line[:60]!r}; take that line out, "
            "and what it held is asked for again"
        )


class Store:
    """A folder with the lines of a run. Held by one process at a time.

    tasks: replies of the first step; examples: accepted ones of the second; rejected: what could not be used, and why.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], *, overwrite: bool = False) -> None:
        """Begin a run in a folder, or go on with the one that is there.

        Raises:
            CorpusError: the folder is in use, holds something else, or a run with other settings.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        begun = (folder / MANIFEST).exists()
        others = sorted({path.name for path in folder.iterdir()} - {"lock", f"{MANIFEST}.tmp"})
        if others and not begun:
            raise CorpusError(f"{folder} holds {others[0]!r}, but no run of thalweg synth: choose another folder")
        try:
            self._lock: IO[bytes] = hold(folder / "lock")
        except OSError as error:
            raise CorpusError(
                f"another run is writing to {folder}; wait for it to end, or choose another folder"
            ) from error
        try:
            if begun and overwrite:
                self._remove()
            self._begin_or_check(manifest)
            self.tasks, self.examples, self.rejected = (Lines(folder / f"{name}.jsonl") for name in LINES)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        for lines in (self.tasks, self.examples, self.rejected):
            lines.close()
        self._lock.close()

    def write(self, name: str, content: Iterable[dict[str, Any]]) -> None:
        """A whole JSONL file of the result."""

        def fill(stream: IO[bytes]) -> None:
            for record in content:
                stream.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())

        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_durably(path, fill)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A whole JSON file."""
        write_durably(
            self.folder / name,
            lambda stream: stream.write(f"{json.dumps(content, ensure_ascii=False, indent=2)}\n".encode()),
        )

    def _begin_or_check(self, manifest: dict[str, Any]) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            self.write_json(MANIFEST, manifest)
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CorpusError(f"{path} cannot be read; choose another folder, or use --overwrite") from None
        for name, value in manifest.items():
            if earlier.get(name) != value:
                raise CorpusError(
                    f"{self.folder} was begun with {name} {earlier.get(name)!r}, now it is {value!r}; keep it as it "
                    "was, choose another folder, or use --overwrite"
                )

    def _remove(self) -> None:
        """Take away what a run writes, and nothing else; the manifest last, which says that the folder is ours."""
        for name in (
            *(f"{name}.jsonl" for name in LINES),
            PAIRS,
            REPORT,
            *(f"{DATA}/{name}.jsonl" for name in TASK_TYPES),
        ):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / DATA).rmdir()
        shutil.rmtree(self.folder / MINED, ignore_errors=True)
        sync_folder(self.folder)
        (self.folder / MANIFEST).unlink()
