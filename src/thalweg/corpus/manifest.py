"""What makes two runs the same: settings and inputs, written down so that a resumed run can be held to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import CorpusError
from thalweg.inputs.files import STDIN, InputFile
from thalweg.storage.durable import write_durably

FORMAT = 2
"""Format of the work folder; runs of another format cannot be resumed."""

_SHOWN = 5


@dataclass(frozen=True)
class Manifest:
    """The settings that decide what is in the output, and every input file as it was."""

    settings: Mapping[str, Any]
    files: tuple[InputFile, ...]

    def summary(self) -> dict[str, Any]:
        """Short, comparable: the settings and a digest of the inputs."""
        digest = hashlib.sha256()
        for line in self.input_lines():
            digest.update(line.encode())
        return {"format": FORMAT, "settings": dict(self.settings), "inputs": digest.hexdigest()}

    @property
    def digest(self) -> str:
        """Hexadecimal digits that tell this run from others."""
        return hashlib.sha256(json.dumps(self.summary(), sort_keys=True).encode()).hexdigest()

    def input_lines(self) -> Iterator[str]:
        """The inputs as JSON lines."""
        for file in self.files:
            yield json.dumps(_entry(file)) + "\n"

    def write_inputs(self, path: Path) -> None:
        """The inputs to a file."""
        write_durably(path, lambda stream: stream.writelines(map(str.encode, self.input_lines())))

    def check_settings(self, earlier: Mapping[str, Any], where: str) -> None:
        """Hold this run to the summary of an earlier one.

        Raises:
            CorpusError: naming every setting that differs.
        """
        if earlier.get("format") != FORMAT:
            raise CorpusError(f"{where} was made by another version of thalweg; start over with --overwrite")
        old, new = earlier.get("settings"), dict(self.settings)
        if not isinstance(old, dict):
            raise CorpusError(f"the manifest of {where} is damaged; start over with --overwrite")
        differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if differing:
            told = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in differing)
            raise CorpusError(f"{where} was made with other settings ({told}); repeat them or start over: --overwrite")

    def check_inputs(self, earlier: Path) -> None:
        """Hold this run to the inputs that an earlier one has written to a file.

        Raises:
            CorpusError: naming the first files that were added, removed or changed.
        """
        try:
            old = {entry[0]: entry for entry in map(json.loads, earlier.read_text(encoding="utf-8").splitlines())}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CorpusError(f"{earlier} is damaged ({error}); start over with --overwrite") from error
        new = {entry[0]: entry for entry in map(json.loads, self.input_lines())}
        changes = [f"{path} is new" for path in new.keys() - old.keys()]
        changes += [f"{path} is gone" for path in old.keys() - new.keys()]
        changes += [f"{path} has changed" for path in new.keys() & old.keys() if old[path] != new[path]]
        if not changes and list(old) != list(new):
            changes = ["their order is another"]
        if changes:
            more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            told = ", ".join(sorted(changes)[:_SHOWN]) + more
            raise CorpusError(f"the inputs are not those of {earlier.parent}: {told}; start over with --overwrite")

    @property
    def repeatable(self) -> bool:
        """Whether all inputs can be read a second time."""
        return all(file.path != STDIN for file in self.files)

    def check_repeatable(self) -> None:
        """Raises:
        CorpusError: an input that cannot be read a second time.
        """
        if not self.repeatable:
            raise CorpusError("stdin cannot be read again, so --resume is not possible; put the text into a file")


def _entry(file: InputFile) -> list[Any]:
    """A file as it was, and how it is read."""
    return [file.path, file.id, file.kind, file.size, file.modified_ns, file.encoding, file.delimiter]
