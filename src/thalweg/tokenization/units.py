"""A text in units, and what normalizer, pre-tokenizer and model make of each, whatever lies around it.

A unit is a character that stands alone and the marks after it (`normalizers.py`). What becomes of one is asked of the
library once and looked up from then on: so a row of units inside one word reaches the model without the library.

Legend: m units; k symbols of the model that they become.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from thalweg.tokenization.added_tokens import AddedTokens
from thalweg.tokenization.library_errors import normalize
from thalweg.tokenization.normalizers import NormalizerRules
from thalweg.tokenization.runs import Kinds, RunRules
from thalweg.tokenization.segmenters import Segmenter, Symbols, UnprovenError
from thalweg.tokenization.spelling import Spelled, Speller, symbols_of

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_MOST_MARKS = 31  # of a unit
_MOST_UNITS = 1 << 18  # remembered; about 80 bytes each
_UNKNOWN, _MARK, _OPAQUE = -1, -2, 0  # instead of a number: not asked for yet; in no unit of its own; in no row
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class _Table:
    """The units that are known: their kinds, and their symbols with the characters, counted from the unit's start, that
    each stands for, all in a row."""

    kinds: Kinds
    begins: Int64  # (units + 1,)
    symbols: Symbols

    @staticmethod
    def empty() -> "_Table":
        """With unit 0, which is of no kind."""
        none, zero = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.uint64)
        return _Table(Kinds(zero, zero, zero), np.zeros(2, dtype=np.int64), Symbols(none.astype(np.int32), none, none))

    def longer(self, kinds: Kinds, symbols: Sequence[Symbols]) -> "_Table":
        counts = [len(of_one.symbols) for of_one in symbols]
        return _Table(
            Kinds(*map(np.concatenate, zip(self.kinds, kinds, strict=True))),
            np.concatenate([self.begins, self.begins[-1] + np.cumsum(counts, dtype=np.int64)]),
            Symbols(*map(np.concatenate, zip(self.symbols, *symbols, strict=True))),
        )


class Units:
    """A text that begins with a unit. bounds (m + 1,): the characters at which its units start, and its end; kinds:
    masks (m,), 0 for a unit that is in no row."""

    def __init__(self, table: _Table, bounds: Int64, numbers: Int32) -> None:
        self._table = table
        self._numbers = numbers
        self.bounds = bounds
        self.kinds = Kinds(*(masks[numbers] for masks in table.kinds))

    def filled(self, begin: int, end: int) -> Int64:
        """Which of units [begin, end) become any symbols."""
        numbers = self._numbers[begin:end]
        return begin + np.flatnonzero(self._table.begins[numbers + 1] - self._table.begins[numbers])

    def symbols(self, begin: int, end: int) -> Symbols:
        """Those of units [begin, end)."""
        table, numbers = self._table, self._numbers[begin:end]
        counts = table.begins[numbers + 1] - table.begins[numbers]
        before = np.cumsum(counts) - counts
        picks = np.repeat(table.begins[numbers] - before, counts) + np.arange(counts.sum())
        chars = np.repeat(self.bounds[begin:end], counts)
        symbols, starts, ends = (array[picks] for array in table.symbols)
        return Symbols(symbols, starts + chars, ends + chars)


class UnitReader:
    """`normalizers`: the settings of those of `library`, in order."""

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        normalizers: Sequence[Mapping[str, Any]],
        added_tokens: AddedTokens,
        runs: RunRules,
        speller: Speller,
        segmenter: Segmenter,
    ) -> None:
        self._normalizer = library.normalizer
        self._places = NormalizerRules(normalizers)
        self._runs = runs
        self._speller = speller
        self._segmenter = segmenter
        self._spaces_may_go = self._places.joins_spaces or added_tokens.take_spaces
        self._telling = _telling_characters(added_tokens.raw)
        self._telling_when_normalized = _telling_characters(added_tokens.normalized)
        self._lock = threading.Lock()
        self._clear()

    def read(self, text: str, start: int = 0) -> Units | None:
        """`text`, which starts at character `start`. None if it does not begin with a unit."""
        chars = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        with self._lock:
            if len(self._table.begins) > _MOST_UNITS:
                self._clear()
            numbers = self._numbers(chars)
            bounds = np.flatnonzero(numbers != _MARK)
            if not len(bounds) or bounds[0] != 0:
                return None
            numbers, bounds = numbers[bounds], np.append(bounds, len(text))
            longer = np.flatnonzero(np.diff(bounds) > 1).tolist()
            numbers[longer] = self._numbers_of_longer([text[bounds[i] : bounds[i + 1]] for i in longer])
            return Units(self._table, bounds + start, numbers)

    def _clear(self) -> None:
        self._of_characters = np.full(0x110000, _UNKNOWN, dtype=np.int32)
        self._of_longer: dict[str, int] = {}
        self._table = _Table.empty()

    def _numbers(self, chars: npt.NDArray[np.uint32]) -> Int32:
        numbers = self._of_characters[chars]
        unknown = np.unique(chars[numbers == _UNKNOWN])
        if not len(unknown):
            return numbers
        names = list(map(chr, unknown.tolist()))
        places = [self._places.place(name) for name in names]
        self._of_characters[unknown] = [_MARK if place == "mark" else _OPAQUE for place in places]
        alone = [name for name, place in zip(names, places, strict=True) if place == "alone"]
        self._of_characters[list(map(ord, alone))] = self._added(alone)
        return self._of_characters[chars]

    def _numbers_of_longer(self, units: Sequence[str]) -> Sequence[int]:
        known = self._of_longer
        new = list(dict.fromkeys(unit for unit in units if unit not in known and self._may_be_one(unit)))
        known.update(zip(new, self._added(new), strict=True))
        return [known.get(unit, _OPAQUE) for unit in units]

    def _may_be_one(self, unit: str) -> bool:
        return len(unit) <= 1 + _MOST_MARKS and self._places.place(unit[0]) == "alone"

    def _added(self, units: Sequence[str]) -> Sequence[int]:
        """The numbers of units that were not known."""
        normalized = {unit: text for unit in units if (text := self._normalized(unit)) is not None}
        kinds = self._kinds_of(list(normalized.values()))
        in_rows = self._runs.in_one_word(kinds.members)
        candidates = [unit for unit, kept in zip(normalized, in_rows.tolist(), strict=True) if kept]
        symbols = [
            self._symbols_of(unit, *spelled) for unit, spelled in zip(candidates, self._spell(candidates), strict=True)
        ]
        known = [i for i, found in enumerate(symbols) if found is not None]
        first = len(self._table.begins) - 1
        numbers = {candidates[i]: first + number for number, i in enumerate(known)}
        self._table = self._table.longer(
            Kinds(*(masks[in_rows][known] for masks in kinds)), [found for found in symbols if found is not None]
        )
        return [numbers.get(unit, _OPAQUE) for unit in units]

    def _normalized(self, unit: str) -> str | None:
        """None if an added token may begin, end or lie in it, or if spaces may go with it."""
        left, right, all_ = (normalize(self._normalizer, text) for text in ("x", "xx", f"x{unit}x"))
        if right[: len(left)] != left or not all_.startswith(left) or not all_.endswith(right[len(left) :]):
            return None
        text = all_[len(left) : len(all_) - len(right) + len(left)]
        spaces = self._spaces_may_go and any(char.isspace() for char in unit + text)
        telling = self._telling.isdisjoint(unit) and self._telling_when_normalized.isdisjoint(text)
        return text if telling and not spaces else None

    def _kinds_of(self, texts: Sequence[str]) -> Kinds:
        """The kinds that all characters of each text belong to."""
        of_characters = self._runs.kinds("".join(texts))
        result = Kinds(*(np.full(len(texts), value, dtype=np.uint64) for value in (_ALL, np.uint64(0), _ALL)))
        filled = [i for i, text in enumerate(texts) if text]
        if filled:
            begins = np.cumsum([0, *(len(text) for text in texts if text)])
            result.members[filled] = np.bitwise_and.reduceat(of_characters.members, begins[:-1])
            result.first[filled] = of_characters.first[begins[:-1]]
            result.not_after[filled] = of_characters.not_after[begins[1:] - 1]
        return result

    def _spell(self, units: Sequence[str]) -> Iterator[tuple[Spelled, int]]:
        """Each between two like it, and where that begins."""
        spelled = self._speller.spell("".join(unit * 3 for unit in units))
        begins = np.cumsum([0, *(3 * len(unit) for unit in units)])
        rows = np.searchsorted(spelled.starts, begins).tolist()
        for begin, row, end in zip(begins.tolist(), rows, rows[1:], strict=False):
            yield spelled.between(row, end), begin

    def _symbols_of(self, unit: str, spelled: Spelled, begin: int) -> Symbols | None:
        """What it becomes inside a word; None if that cannot be said."""
        inside = spelled.starts - begin - len(unit)
        first, end = np.searchsorted(inside, [0, len(unit)]).tolist()
        if len(spelled.words) and spelled.words[0] != spelled.words[-1]:
            return None
        try:
            found = symbols_of(self._segmenter, spelled.between(first, end), first=False, last=False)
            return Symbols(found.symbols, found.starts - begin - len(unit), found.ends - begin - len(unit))
        except UnprovenError:
            return None


def _telling_characters(contents: Sequence[str]) -> frozenset[str]:
    """One character of each: in a text without these there is none of them."""
    rare = [[char for char in content if not char.isalnum() and char not in " ▁"] for content in contents]
    return frozenset(char for some, content in zip(rare, contents, strict=True) for char in (some or content)[:1])
