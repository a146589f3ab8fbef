"""One file to read."""

from __future__ import annotations

import os
from dataclasses import dataclass

STDIN = "-"

TEXT = "text"
"""The format of a file that is one text. All others have rows."""


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    path: as it can be opened, "-" for stdin; id: what its documents are called; kind: the name of its format, see
    `formats.py`; gz: it is packed; size, modified_ns: as they were when the run began (0 for what has none);
    encoding, delimiter: as a user gave them, None to find out; asked: a user has named the file itself.
    """

    path: str
    id: str
    kind: str
    gz: bool
    size: int = 0
    modified_ns: int = 0
    encoding: str | None = None
    delimiter: str | None = None
    asked: bool = True

    @property
    def is_table(self) -> bool:
        """Whether it has rows."""
        return self.kind != TEXT


def as_text(text: str) -> str:
    r"""A text that can be written as UTF-8: what is no character becomes `\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(path: str) -> str:
    r"""A file name as text that can be stored and shown: bytes that are no UTF-8 become `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
