"""Sentences, found by rules as a text arrives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from thalweg.embedder.paragraphs import BLANK, BLANKS, LINE_END, LOOK_BEHIND, PARAGRAPH_BREAK, Units, squeeze

_TERMINATORS = ".!?…‽⁇⁈⁉؟۔।॥։።፧។៕။"  # white space must follow
_WIDE = "。！？｡．"  # nothing has to follow
_CLOSERS = "\"'”’“‘»«›‹)]}」』】》〉）］｝*_~`"  # right after a terminator; “ and « close in German
_WIDE_CLOSERS = "\"'”’)]}」』】》〉）］｝"
_CONTINUERS = f",;:%)]}}，、；：）］｝」』】》〉،؛{_TERMINATORS}{_WIDE}"  # no sentence begins with one
_OPENERS = "\"'“”„‚‘’«»‹›([{<「『【《〈（［｛*_~`¿¡"

_MANY = 8  # closing marks after a terminator, or opening marks of a sentence, that are looked at
_END = re.compile(
    # Where the text so far stops within an end it counts as one, for more to come.
    rf"[{_TERMINATORS}](?:[{re.escape(_CLOSERS)}]|\[\d{{1,3}}\]){{0,{_MANY}}}(?=[{re.escape(BLANK)}]|(?:\[\d{{0,3}})?\Z)"
    rf"|[{_WIDE}](?![{_TERMINATORS}{_WIDE}])[{re.escape(_WIDE_CLOSERS)}]{{0,{_MANY}}}"
    rf"|(?P<paragraph>{PARAGRAPH_BREAK})"
)
_LINE_END = re.compile(LINE_END)
_OPENING = re.compile(rf"[{re.escape(_OPENERS)}]{{0,{_MANY}}}")
_OPENING_OR_DASH = re.compile(rf"(?:[{re.escape(_OPENERS)}]|[-–—]{{1,3}}[ \xa0\u202f]?){{0,{_MANY}}}")

_WORD = re.compile(r"[^\W_][\w.'’\u0300-\u036f]*\Z")
_LONGEST_WORD = 24  # of those that are looked up
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
_LIST_NUMBER = re.compile(rf"{LINE_END}[^\S\r\n]*(?:\d{{1,3}}|[ivxIVX]+)\Z")
_ABBREVIATED = (
    "Mr Mrs Ms Messrs Dr Drs Prof Rev Hon Gov Sen Rep Pres Gen Col Maj Capt Lt Sgt Cpl Adm St Ste Mt Ft "
    "etc vs cf viz resp approx ca al Fig Figs fig figs Eq Eqs eq eqs Tab Ref Refs Ph.D "
    "Hr Hrn Fr Frl Nr Nrn bzw vgl Vgl sog ggf evtl usw Bd Abb Mme Mlle MM Mgr Sr Sra Srta Dra Sig Ing "
    "г ул им см рис стр"
)
_BEFORE_NUMBERS = (
    "No Nos no nos Vol vol Vols Ch ch Chap chap Sec sec Sect Art art Par par Pt pt pp Abs abs Kap Bl"
    " Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)
_ABBREVIATIONS, _NUMBERED = frozenset(_ABBREVIATED.split()), frozenset(_BEFORE_NUMBERS.split())
_MAY_END = frozenset(("a.m", "p.m", "A.M", "P.M"))
_GERMAN_MONTH = re.compile("(?:Jan|Feb|März|Apr|Mai|Jun|Jul|Aug|Sept|Okt|Nov|Dez)")
_MONTH_CHARS = 4


@dataclass
class Sentences(Units):
    """A sentence ends with a terminator of any script, the quotes, brackets and footnote numbers ([1]) that close
    right after it, and white space (none is needed after the full-width terminators of Chinese and Japanese). A blank
    line or a page break always ends one. No sentence begins where

    - the next letter is lower case, as after “Why?” he asked, an ellipsis or "U.S. troops";
    - the next character only goes on or closes (comma, colon, bracket, another terminator);
    - the word before a full stop is a common abbreviation (Mr., e.g., Fig., z. B., Mme), a single letter (J. K.
      Rowling), letters with full stops between (U.S.), one that goes before numbers and does (No. 5, Jan. 3), or the
      number of a list item at the start of a line;
    - a German month follows a day (3. Oktober).

    This is a rule, no model, and goes wrong: "He moved to the U.S. She stayed." and "So did I. He left." are one
    sentence, and so is what follows any abbreviation at a true end; abbreviations that are not listed end sentences, as
    do German ordinals before other nouns (der 2. Weltkrieg); sentences that begin with a lower-case name (iPhone) do
    not begin; a quotation and the words after it are two in Chinese and Japanese (「…。」他说); lines of a poem, list
    items and titles without a terminator or a blank line are not told apart; Thai and Lao, which have no terminators,
    have paragraphs only. More than 8 closing marks after a terminator are no end.
    """

    kind: ClassVar[str] = "sentence"

    window: str = ""  # what has been decided of is kept so far as later ends may look behind
    undecided: int = 0  # characters of the window that may hold an end, counted from its own
    open: int = 0  # characters after a boundary that is undecided

    @property
    def settled(self) -> int:
        return self.end - self.open

    def push(self, piece: str) -> list[int]:
        return self._advance(piece, last=False)

    def finish(self) -> list[int]:
        return self._advance("", last=True)

    def _advance(self, piece: str, *, last: bool) -> list[int]:
        text = self.window + piece
        self.end += len(piece)
        self._begin_first(text)
        base = self.end - len(text)
        found: list[int] = []
        blank = len(text.rstrip(BLANK)), len(text)  # blank space that may go on, or wait for a decision
        rescan = blank[0]
        self.open = 0
        for end in _END.finditer(text, len(self.window) - self.undecided):
            if end["paragraph"] is not None:
                begins, start = end.end() < len(text), end.end()
            else:
                space = self._closed(text, end)
                begins_at = BLANKS.match(text, space)
                assert begins_at is not None
                start = begins_at.end()
                decided = self._is_end(text, end, space, start, last=last)
                if decided is None:
                    rescan, blank, self.open = end.start(), (space, start), len(text) - start
                    if end.end() < space == len(text):
                        self.open = 1  # a guillemet that opens if no white space comes next
                    break
                begins = decided
            if begins:
                self._begins(base + start, found)
        keep = max(0, rescan - LOOK_BEHIND)
        rest = text[rescan : blank[0]] + squeeze(text[blank[0] : blank[1]]) + text[blank[1] :]
        self.window, self.undecided = text[keep:rescan] + rest, len(rest)
        return found

    def _closed(self, text: str, end: re.Match[str]) -> int:
        """Where the white space after an end begins: a French guillemet that closes may have a space before it."""
        place = end.end()
        if text[place : place + 1] in (" ", "\xa0", "\u202f") and text[place + 1 : place + 2] in ("»", "›"):
            after = text[place + 2 : place + 3]
            if after == "" or after in BLANK:
                return place + 2
        return place

    def _is_end(self, text: str, end: re.Match[str], space: int, start: int, *, last: bool) -> bool | None:
        """Whether a sentence begins at `start`, with white space before it from `space`; None: more text must tell."""
        terminator = end.start()
        if start == len(text):
            return False if last else None
        wide = text[terminator] in _WIDE
        if start == space:
            if not wide:  # a footnote's number that has begun
                return False if last else None
            number = text[terminator] == "．" and text[start].isalnum()
            return not number and text[start] not in _CONTINUERS and text[start] not in _WIDE_CLOSERS
        if text[start] in _CONTINUERS:
            return False
        if wide:
            return True
        # On a line of its own a dash begins a list item, or what somebody says.
        opening = (_OPENING if _LINE_END.search(text, space, start) else _OPENING_OR_DASH).match(text, start)
        assert opening is not None
        if opening.end() == len(text):
            return last or None
        if _is_lower(text[opening.end()]):
            return False
        if text[terminator] != "." or end.end() > terminator + 1:
            return True
        return self._ends_after_word(text, terminator, start, last=last)

    def _ends_after_word(self, text: str, stop: int, start: int, *, last: bool) -> bool | None:
        """Whether a full stop after a word is an end, and no part of the word."""
        found = _WORD.search(text, max(0, stop - _LONGEST_WORD), stop)
        if found is None:
            return True
        word = found[0]
        if word in _ABBREVIATIONS or (len(word) == 1 and word.lower() != word.upper()):
            return False
        if _INITIALS.fullmatch(word):
            return word in _MAY_END
        if word in _NUMBERED:
            return not text[start].isdigit()
        if word.isdigit() and len(word) <= 2 and text[start] in "JFMASOND":
            if len(text) < start + _MONTH_CHARS and not last:
                return None
            if _GERMAN_MONTH.match(text, start):
                return False
        # In a window that begins later than the text, at least so much is before anything that is undecided.
        before = text[stop - LOOK_BEHIND : stop] if stop >= LOOK_BEHIND else "\n" + text[:stop]
        return not _LIST_NUMBER.search(before)


def _is_lower(char: str) -> bool:
    """Whether no sentence begins with this letter. Georgian is written in lower case alone."""
    return char.islower() and char.title() != char
