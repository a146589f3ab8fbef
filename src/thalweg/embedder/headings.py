"""Headings, found by rules as a text arrives, line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from thalweg.embedder.paragraphs import BLANK, LINE_END, PAGE_BREAKS, SPACES, Units

LONGEST_LINE = 200
"""Characters of a line, from the first visible one, of which a longer line is none that is underlined, an underline, or
a plain heading; and blank characters at the start of a line that count as a blank line."""
LONGEST_HEADING = 80

_LINE_END = re.compile(  # with the blank lines that follow, so that they are not gone through one by one
    f"(?:{LINE_END}(?:[{re.escape(SPACES)}]*(?P<blank>{LINE_END}|[{PAGE_BREAKS}])[{re.escape(BLANK)}]*)?"
    f"|(?P<page>[{PAGE_BREAKS}])[{re.escape(BLANK)}]*)"
)
_ATX = re.compile(r"#{1,6}(?!\S)")
_FENCE = re.compile(r"`{3,}(?!.*`)|~{3,}")
_CODE_INDENT = 4  # columns of a line's indent that make it code in Markdown

_ORDINALS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth last "
    "premier première primero primera"
)
_KEYWORDS = (
    "chapter part book volume section act scene canto appendix annex stave "
    "kapitel teil buch band abschnitt anhang akt chapitre partie livre tome annexe "
    "capítulo parte libro sección глава часть"
)
_NUMBER = rf"(?:\d+(?:\.\d+)*|[IVXLCDM]+|[A-Z]|(?i:{'|'.join(_ORDINALS.split())}))\b"
_KEYWORD = rf"(?i:{'|'.join(_KEYWORDS.split())})\s+(?:(?i:the)\s+)?{_NUMBER}"
_BARE = re.compile(rf"{_KEYWORD}[.:]?")
_TITLED = re.compile(rf"{_KEYWORD}(?:\s*[.:—–-].*|\s+[^\W\d_a-z].*(?<![.!?…,;]))")
_OTHER_KEYWORDS = re.compile(
    r"§+\s*\d.*|第\s*[〇零一二三四五六七八九十百千两\d]+\s*[章节節回卷部篇編话話].*|제\s*\d+\s*[장절부편].*"
    r"|(?:الفصل|الباب|الجزء|अध्याय)\s+\S.*|(?:\d+\.|[A-ZÄÖÜ]\w+)\s(?:Kapitel|Teil|Buch|Akt)\b.*"
)
_NAMED = re.compile(
    r"(?i:abstract|acknowledge?ments?|afterword|appendix|bibliography|conclusions?|contents|discussion|epilogue|foreword"
    r"|glossary|introduction|preface|prologue|references|summary|einleitung|inhalt|vorwort|nachwort|préface|prólogo)"
    r"[.:]?"
)
_NUMBER_ALONE = re.compile(r"[IVXLCDM]+\.?|\d{1,3}\.")
_NUMBERED = re.compile(r"\d{1,2}(?:\.\d{1,2}){0,4}\.?\s+(?P<first>[^\W\d_]).*(?<![.!?…,;:。！？])")


def is_plain_heading(line: str) -> bool:
    """Whether a line that stands alone between blank lines is a heading: "Chapter 12: The Storm", "§ 12", "Preface",
    "II.", "3.2 Results", "THE STORM"."""
    line = line.strip("*_")
    if not line or len(line) > LONGEST_HEADING:
        return False
    if any(rule.fullmatch(line) for rule in (_BARE, _TITLED, _OTHER_KEYWORDS, _NAMED, _NUMBER_ALONE)):
        return True
    if numbered := _NUMBERED.fullmatch(line):
        return not numbered["first"].islower()
    return line.isupper() and line[0].isalnum() and sum(map(str.isalpha, line)) > 2 and line[-1] not in "!?,;:"


@dataclass
class Headings(Units):
    """A section begins at a heading.

    Of Markdown: one to six # and white space; a line underlined with three or more = or -, which for - must stand alone
    (a line over it as well belongs to it). Nothing is a heading inside of code fenced with ``` or ~~~.

    Of plain books and papers: a line of at most 80 characters between blank lines (or the text's ends) that has a
    keyword and a number (CHAPTER I., PART TWO, § 12, Appendix B, 第三章), is a usual title (Preface), a number alone
    (II, II., 12.), numbered and no sentence (3.2 Results), or all in capitals. A line that is a keyword and a number
    alone needs no blank line after it.

    Headings that follow each other at once (a part's and a chapter's) begin a section each.

    This is a rule and goes wrong: titles in ordinary letters without a number or a keyword are not found; a numbered
    list with blank lines between its items, a date at the head of a letter (5 June 1882) and a paragraph that is one
    shouted name or sign are taken for headings; a fence that is never closed hides all headings after it; lines longer
    than 200 characters are headings only with #.
    """

    kind: ClassVar[str] = "heading"

    cr: bool = False  # the text ends with \r, which a \n may follow
    indent: int = 0  # columns of blank space at the start of the line
    line: str = ""  # the line so far, from its first visible character, up to one more than is looked at
    line_start: int = -1  # where that character is
    done: bool = False  # the line is longer and has been judged
    alone: bool = True  # a blank line, a heading or nothing is before the line
    rule_start: int = -1  # of the line before, a rule of = or - that may belong to a heading below it
    before: int = -1  # where the line before begins, if it may still prove to be a heading:
    plain: bool = False  # by a blank line
    underlines: str = ""  # by an underline of one of these
    fence: str = ""  # that is open

    @property
    def settled(self) -> int:
        if self.before >= 0:
            return self.before
        if self.rule_start >= 0:
            return self.rule_start
        return self.line_start if self.line and not self.done else self.end

    def push(self, piece: str) -> list[int]:
        text = "\r" + piece if self.cr else piece
        self.end += len(piece)
        base = self.end - len(text)
        self.cr = text.endswith("\r")
        if self.cr:
            text = text[:-1]
        found: list[int] = []
        begin = 0
        for end in _LINE_END.finditer(text):
            self._add(text[begin : end.start()], base + begin, found)
            self._end_line(found)
            begin = end.end()
            if end.lastgroup:
                self._blank_line(found)
                begin = end.start() + len(end[0].rstrip(SPACES))
        self._add(text[begin:], base + begin, found)
        return found

    def finish(self) -> list[int]:
        found: list[int] = []
        self._end_line(found)
        self._blank_line(found)
        return found

    def _add(self, text: str, position: int, found: list[int]) -> None:
        """More of the line."""
        if self.done or not text:
            return
        if not self.line:
            visible = text.lstrip(BLANK)
            blank = text[: len(text) - len(visible)]
            self.indent += len(blank) + (_CODE_INDENT - 1) * blank.count("\t")
            if self.indent >= LONGEST_LINE:
                self._blank_line(found)
            if not visible:
                return
            text = visible
            self.line_start = position + len(blank)
            if self.start < 0:
                self.start = self.line_start
        self.line += text[: LONGEST_LINE + 1 - len(self.line)]
        if len(self.line) > LONGEST_LINE:
            self._visible_line(found)
            self.done = True

    def _end_line(self, found: list[int]) -> None:
        if not self.line:
            self._blank_line(found)
        elif not self.done:
            self._visible_line(found)
        self.line, self.indent, self.done = "", 0, False

    def _blank_line(self, found: list[int]) -> None:
        if self.plain:
            self._begins(self.before, found)
        self._set(alone=True)

    def _visible_line(self, found: list[int]) -> None:
        line = self.line.rstrip(BLANK)
        long = len(self.line) > LONGEST_LINE
        shallow = self.indent < _CODE_INDENT
        if self.fence:
            if shallow and not long and len(line) >= len(self.fence) and line == self.fence[0] * len(line):
                self.fence = ""
            self._set()
            return
        if shallow and not long and len(line) >= 3 and line[0] in "=-" and line == line[0] * len(line):
            if line[0] in self.underlines:
                self._begins(self.before, found)
                self._set(alone=True)
            else:
                self._set(rule_start=self.line_start if self.alone else -1)
        elif shallow and _ATX.match(line):
            self._begins(self.line_start, found)
            self._set(alone=True)
        elif shallow and (fence := _FENCE.match(line)):
            self.fence = fence[0]
            self._set()
        elif long:
            self._set()
        else:
            alone = self.alone or self.rule_start >= 0
            start = self.rule_start if self.rule_start >= 0 else self.line_start
            if alone and _BARE.fullmatch(line):
                self._begins(start, found)
            underlines = ("=-" if alone else "=") if shallow else ""
            self._set(start, plain=alone and is_plain_heading(line), underlines=underlines)

    def _set(
        self, before: int = -1, *, plain: bool = False, underlines: str = "", alone: bool = False, rule_start: int = -1
    ) -> None:
        self.before = before if plain or underlines else -1
        self.plain, self.underlines, self.alone, self.rule_start = plain, underlines, alone, rule_start
