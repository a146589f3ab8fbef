"""Paragraphs, found as a text arrives, and what all units share: blank space, and counting units up to a section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from thalweg import checks
from thalweg.errors import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self

BLANK = "".join(char for char in map(chr, range(0x3001)) if char.isspace()) + "\u200b\u200e\u200f\u2060\ufeff"
"""What is not visible: white space, and the marks of width zero that stand between words."""
PAGE_BREAKS = "\f\u2029"  # each is as good as a blank line
SPACES = "".join(char for char in BLANK if char not in f"\n\r\v\x85\u2028{PAGE_BREAKS}")

LINE_END = r"(?:\r\n|\r(?!\n)|[\n\v\x85\u2028])"
PARAGRAPH_BREAK = (
    rf"(?:{LINE_END}[{re.escape(SPACES)}]*{LINE_END}|[{PAGE_BREAKS}])[{re.escape(BLANK)}]*"  # up to visible text
)
BLANKS = re.compile(f"[{re.escape(BLANK)}]*")
_LINE_END = re.compile(LINE_END)
_BREAK = re.compile(PARAGRAPH_BREAK)

LOOK_BEHIND = 64
"""Characters before a place that may have a say in whether a section begins there."""


@dataclass
class Units:
    """Units of one text: the boundaries between them, of which each n-th ends a section.

    The fields are all there is of a text on its way: plain values of bounded size, to be copied and saved.
    """

    kind: ClassVar[str]

    every: int = 1  # units in a section
    end: int = 0  # characters that have arrived
    start: int = -1  # of the unit that is under way: its first visible character; -1 before there is one
    units: int = 0  # finished ones in the section that is under way

    @property
    def settled(self) -> int:
        """No boundary that is still to come lies before this character. Only a few hundred characters may be open."""
        return self.end

    def copy(self) -> Self:
        return replace(self)

    def state(self) -> dict[str, Any]:
        return {"by": self.kind} | asdict(self)

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """What `state` gave, to go on from there.

        Raises:
            InvalidInputError: it is no state of this kind.
        """
        wanted: dict[str, type] = {"by": str} | {field.name: type(field.default) for field in fields(cls)}
        if {name: type(value) for name, value in state.items()} != wanted or state["by"] != cls.kind:
            raise InvalidInputError(f"this is no state of {cls.kind} boundaries: {dict(state)!r:.80}")
        for name, value in state.items():
            if type(value) is int:
                checks.whole_number(name, value, 1 if name == "every" else -1)
        return cls(**{name: value for name, value in state.items() if name != "by"})

    def _begins(self, position: int, found: list[int]) -> None:
        """A unit begins here. Where the one before begins as well, both are one."""
        if position <= self.start:
            return
        self.start = position
        self.units += 1
        if self.units == self.every:
            self.units = 0
            found.append(position)

    def _begin_first(self, text: str) -> None:
        """Looks for the first visible character in the text that has arrived last. What is before it has none."""
        if self.start < 0 and (blank := BLANKS.match(text)) and blank.end() < len(text):
            self.start = self.end - len(text) + blank.end()


@dataclass
class Paragraphs(Units):
    r"""A paragraph begins after blank lines, which may hold white space, or after a page break.

    Lines end with \n, \r\n, \r, U+000B, U+0085 or U+2028; U+000C (form feed) and U+2029 separate paragraphs by
    themselves.
    """

    kind: ClassVar[str] = "paragraph"

    blank: str = ""  # the blank space that the text ends with so far, squeezed

    def push(self, piece: str) -> list[int]:
        text = self.blank + piece
        self.end += len(piece)
        self._begin_first(text)
        found: list[int] = []
        for blank in _BREAK.finditer(text):
            if blank.end() < len(text):
                self._begins(self.end - len(text) + blank.end(), found)
        self.blank = squeeze(text[len(text.rstrip(BLANK)) :])
        return found

    def finish(self) -> list[int]:
        return []


def squeeze(blank: str) -> str:
    """Blank space of any length in bounded size: its last characters, and before them the line ends that there were,
    up to the two that make a paragraph."""
    cut = len(blank) - LOOK_BEHIND
    if cut <= 2:
        return blank
    if blank[cut - 1 : cut + 1] == "\r\n":
        cut -= 1
    dropped = blank[:cut]
    kept = "\n\n" if _BREAK.search(dropped) else "\n" if _LINE_END.search(dropped) else ""
    return kept + blank[cut:]
