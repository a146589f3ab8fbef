"""What came back, on the disk before it counts; what a torn line held is asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from thalweg.errors import CorpusError
from thalweg.storage.durable import write_durably
from thalweg.storage.lines import Lines
from thalweg.storage.work_folder import WorkFolder

LINES = ("tasks", "examples", "rejected")
DATA, MINED, PAIRS, REPORT = "data", "mined", "pairs.jsonl", "report.json"
"""The result: a folder with a file for each type, what was mined for them, graded pairs, and the counts of the run."""


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
        contents = (DATA, MINED, PAIRS, REPORT, *(f"{name}.jsonl" for name in LINES), "*.tmp")
        self._work = WorkFolder(folder, contents, telling=False)
        try:
            if not self._work.begun and (strangers := self._work.strangers()):
                raise CorpusError(
                    f"{folder} holds {strangers[0]!r}, but no run of thalweg synth: choose another folder"
                )
            if self._work.begun and not overwrite:
                self._check(manifest)
            else:
                self._work.begin(manifest)
            self.tasks, self.examples, self.rejected = (Lines(folder / f"{name}.jsonl") for name in LINES)
        except BaseException:
            self._work.close()
            raise

    def close(self) -> None:
        for lines in (self.tasks, self.examples, self.rejected):
            lines.close()
        self._work.close()

    def write(self, name: str, content: Iterable[dict[str, Any]]) -> None:
        """A whole JSONL file of the result."""

        def fill(stream: BinaryIO) -> None:
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

    def _check(self, manifest: dict[str, Any]) -> None:
        earlier = self._work.manifest()
        for name, value in manifest.items():
            if earlier.get(name) != value:
                raise CorpusError(
                    f"{self.folder} was begun with {name} {earlier.get(name)!r}, now it is {value!r}; keep it as it "
                    "was, choose another folder, or use --overwrite"
                )
