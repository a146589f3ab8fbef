"""One text on its way through a tokenizer of the library, with a bounded window of it in memory.

A window starts at a safe cut (the anchor) and is encoded whole. Its ids are given out from where the last window
stopped up to its own last safe cut; the rest of its text, and a few words before it, start the next window. Those few
words are there because a tokenizer may treat the start of a text specially (a prefix space): their ids are dropped.

Where there is no safe cut, and the window ends in a row of characters that is one word as long as it goes on
(`runs.py`), the word goes to its model symbol by symbol (`segmenters.py`), and the middle of the row leaves the window.
How the text is divided into words can be seen without it; what the model makes of this one word cannot, and is not
looked at.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import tokenizers

from thalweg.checks import whole_number
from thalweg.errors import TokenizationError
from thalweg.tokenization.backend import EMPTY, MAX_UNCUT_CHARS, WINDOW_CHARS, Block
from thalweg.tokenization.cuts import Cut, CutRules
from thalweg.tokenization.library_errors import encode
from thalweg.tokenization.long_words import LongWords
from thalweg.tokenization.segmenters import Path, Symbols, UnprovenError
from thalweg.tokenization.spelling import Spelled, symbols_of
from thalweg.tokenization.text import check_surrogates
from thalweg.tokenization.units import Units

_MOST = 1 << 61  # characters of a text
_MOST_ID = (1 << 31) - 1


class Splitting(Protocol):
    """How texts of one tokenizer can be split. What is asked for here is asked only of texts longer than a window."""

    @property
    def library(self) -> tokenizers.Tokenizer: ...

    @property
    def rules(self) -> CutRules: ...

    @property
    def words(self) -> LongWords | str:
        """Or why there are none."""
        ...


@dataclass
class Word:
    """A word that has gone to its model as far as the window's ids are given out. kinds: of its row, see `runs.py`."""

    path: Path
    kinds: int


@dataclass
class WindowState:
    """Where a text is on its way: plain data, to be copied and saved.

    Positions are characters of `text`, the window. Of the text before them some is left out: gaps are (place in the
    window, characters left out there), all before `done`.
    """

    start: int  # character of the document at which the window starts
    target: int  # characters it should have before ids are looked for
    text: str = ""
    pending: list[str] = field(default_factory=list)  # text after it
    n_pending: int = 0  # characters of it; pieces may be single characters, and many
    gaps: list[tuple[int, int]] = field(default_factory=list)
    done: int = 0  # its characters whose ids have been given out, or that are in `word`
    refused: int = 0  # its characters up to here hold no cut
    tried: int = 0  # its characters when last flushed in vain
    seam_ids: list[int] = field(default_factory=list)  # ids just before `done`, which this window must give again
    word: Word | None = None

    def copy(self) -> "WindowState":
        word = None if self.word is None else Word(self.word.path.copy(), self.word.kinds)
        return replace(self, pending=list(self.pending), gaps=list(self.gaps), seam_ids=list(self.seam_ids), word=word)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` makes it again."""
        word = None if self.word is None else {"path": self.word.path.plain(), "kinds": self.word.kinds}
        return {
            "start": self.start,
            "target": self.target,
            "text": "".join([self.text, *self.pending]),
            "gaps": [list(gap) for gap in self.gaps],
            "done": self.done,
            "refused": self.refused,
            "tried": self.tried,
            "seam_ids": list(self.seam_ids),
            "word": word,
        }

    @classmethod
    def from_plain(
        cls, plain: Mapping[str, Any], window_chars: int, max_uncut_chars: int, words: Callable[[], LongWords]
    ) -> "WindowState":
        """See `LibraryWindow.from_state`, also for its errors."""
        text = plain["text"]
        if not isinstance(text, str):
            raise ValueError("a window has no text")
        check_surrogates(text)
        if len(text) > 2 * max_uncut_chars:
            raise ValueError(f"it has {len(text)} characters without a cut, and max_uncut_chars is {max_uncut_chars}")
        start = whole_number("start", plain["start"], -_MOST, _MOST)
        target = whole_number("target", plain["target"], 1, max(window_chars, 2 * max_uncut_chars))
        done = whole_number("done", plain["done"], 0, len(text))
        refused = max(done, whole_number("refused", plain["refused"], 0, len(text)))
        tried = whole_number("tried", plain["tried"], 0, _MOST)
        gaps, before = [], 0
        for place, count in plain["gaps"]:
            before = whole_number("the place of a gap", place, before, done)
            gaps.append((before, whole_number("a gap", count, 1, _MOST)))
        seam_ids = [whole_number("an id", id_, 0, _MOST_ID) for id_ in plain["seam_ids"]]
        word = None
        if plain["word"] is not None:
            if not gaps:
                raise ValueError("it has a word that goes on, but no gap in it")
            path = words().segmenter.restored(plain["word"]["path"])
            word = Word(path, whole_number("kinds", plain["word"]["kinds"], 0, (1 << 64) - 1))
            if path.size > 2 * max_uncut_chars:
                raise ValueError(f"it has {path.size} symbols that are not decided")
        return cls(
            start,
            target,
            text,
            gaps=gaps,
            done=done,
            refused=refused,
            tried=tried,
            seam_ids=seam_ids,
            word=word,
        )


class LibraryWindow:
    """`skip` characters at the front (the prompt) are encoded, but offsets count from their end, never below 0."""

    def __init__(
        self,
        splitting: Splitting,
        *,
        with_offsets: bool = False,
        skip: int = 0,
        window_chars: int = WINDOW_CHARS,
        max_uncut_chars: int = MAX_UNCUT_CHARS,
    ) -> None:
        self._splitting = splitting
        self._with_offsets = with_offsets
        self._window_chars = window_chars
        self._max_uncut_chars = max_uncut_chars
        self._margin = max(1, window_chars // 256)  # characters kept between cut, seam, anchor and window end
        self._state = WindowState(start=-skip, target=window_chars)
        self._encoded: tokenizers.Encoding | None = None  # of the window as it is
        self._no_row = ""  # why a word cannot go to its model bit by bit

    @property
    def end(self) -> int:
        return self._shift + len(self._state.text) + self._state.n_pending

    def push(self, text: str) -> list[Block]:
        """Raises TokenizationError where more than `max_uncut_chars` characters allow neither a cut nor a row."""
        state = self._state
        state.pending.append(text)
        state.n_pending += len(text)
        blocks = []
        while len(state.text) + state.n_pending > state.target:
            self._read()
            block = self._step()
            if block is not None:
                blocks.append(block)
        return blocks

    def flush(self) -> list[Block]:
        """A text without a cut is looked at again when a quarter has come to it: time stays linear in the text."""
        state = self._state
        size = len(state.text) + state.n_pending
        if size - self._margin <= state.refused or 4 * size < 5 * state.tried:
            return []
        self._read()
        block = self._continue_row() if state.word is not None else None
        if block is None:
            cut = self._last_cut(state.refused, size - self._margin)
            block = None if cut is None else self._up_to(cut)
        if block is None:
            state.refused = size - self._margin
        state.tried = 0 if block is not None else size
        return [] if block is None else [block]

    def finish(self) -> list[Block]:
        self._read()
        word, start = self._state.word, self._resume(self._encoding())
        blocks = (
            [] if word is None else [self._finish_word(word, self._spell(len(self._state.text)), len(self._state.text))]
        )
        return [*blocks, self._block(start, len(self._encoding()))]

    def copy(self) -> "LibraryWindow":
        other = copy.copy(self)
        other._state = self._state.copy()
        return other

    def state(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        return {
            "with_offsets": self._with_offsets,
            "window_chars": self._window_chars,
            "max_uncut_chars": self._max_uncut_chars,
            **self._state.plain(),
        }

    @classmethod
    def from_state(cls, splitting: Splitting, state: Mapping[str, Any]) -> "LibraryWindow":
        """The window of this state, which may have come from anywhere.

        Raises:
            ValueError, TypeError, KeyError: it cannot be that of any text. What passes may still be no window of a text
                that was ever there: then it raises TokenizationError when it is used, or gives the ids of some other.
        """
        window_chars = whole_number("window_chars", state["window_chars"], 1)
        max_uncut_chars = whole_number("max_uncut_chars", state["max_uncut_chars"], window_chars)
        window = cls(
            splitting,
            with_offsets=bool(state["with_offsets"]),
            window_chars=window_chars,
            max_uncut_chars=max_uncut_chars,
        )
        window._state = WindowState.from_plain(state, window_chars, max_uncut_chars, window._known_words)
        return window

    def _known_words(self) -> LongWords:
        words = self._words()
        if words is None:
            raise ValueError(f"it has a word that goes on, and this tokenizer has none: {self._no_row}")
        return words

    def _step(self) -> Block | None:
        """The ids that the window decides; it is shortened by their text. None if it decides none: it must grow."""
        state = self._state
        block = self._continue_row()
        if block is None:
            cut = self._last_cut(state.refused, len(state.text) - self._margin)
            block = self._start_row() if cut is None else self._up_to(cut)
        if block is None:
            state.refused = len(state.text) - self._margin
            state.target = self._larger(state.target)
        return block

    # Windows that are cut

    def _read(self) -> None:
        state = self._state
        state.text = "".join([state.text, *state.pending])
        state.pending, state.n_pending = [], 0
        self._encoded = None

    def _encoding(self) -> tokenizers.Encoding:
        if self._encoded is None:
            self._encoded = encode(self._splitting.library, self._state.text)
        return self._encoded

    def _last_cut(self, low: int, high: int) -> Cut | None:
        """The last safe cut in (low, high]."""
        rules, text = self._splitting.rules, self._state.text
        can_be = rules.refusal is None and rules.offsets_hold(text)
        return rules.last_cut(self._encoding(), text, low, high) if can_be else None

    def _larger(self, target: int) -> int:
        refusal = self._splitting.rules.refusal
        if target < self._max_uncut_chars:
            return self._max_uncut_chars if refusal else min(2 * target, self._max_uncut_chars)
        raise self._too_long(refusal or self._no_row or "there is no place whose two sides tokenise independently")

    def _too_long(self, reason: str) -> TokenizationError:
        state = self._state
        return TokenizationError(
            f"{len(state.text)} characters from character {max(state.start, 0)} on cannot be tokenised in parts: "
            f"{reason}. Put spaces or line breaks there, or raise max_uncut_chars={self._max_uncut_chars} (of load, "
            "encode and encode_stream; --max-uncut-chars) and with it the memory"
        )

    def _up_to(self, cut: Cut) -> Block:
        """The ids up to `cut`, after which the next window starts."""
        state, encoding = self._state, self._encoding()
        blocks = []
        start = min(self._resume(encoding), cut.token)
        if state.word is not None:
            blocks.append(self._finish_word(state.word, self._spell(cut.char + 1), cut.char))
        blocks.append(self._block(start, cut.token))
        self._advance(cut)
        return Block.join(blocks)

    def _block(self, start: int, stop: int) -> Block:
        """The ids of the window's tokens [start, stop), all after the last gap."""
        encoding = self._encoding()
        offsets = np.array(encoding.offsets[start:stop], dtype=np.int64).reshape(-1, 2) if self._with_offsets else None
        return self._placed(Block(np.array(encoding.ids[start:stop], dtype=np.int32), offsets), self._shift)

    def _placed(self, block: Block, shift: int) -> Block:
        if not self._with_offsets or block.offsets is None:
            return Block(block.ids, None)
        return Block(block.ids, np.maximum(block.offsets + shift, 0))

    def _resume(self, encoding: tokenizers.Encoding) -> int:
        """The first token whose ids have not been given out."""
        state = self._state
        if state.word is not None:
            word = self._word_before(encoding, state.done)
            tokens = None if word is None else encoding.word_to_tokens(word)
            assert tokens is not None
            return tokens[1]
        if state.done == 0:
            return 0
        start = self._splitting.rules.token_at(encoding, state.text, state.done)
        if start is None or encoding.ids[start - len(state.seam_ids) : start] != state.seam_ids:
            raise TokenizationError(
                f"this tokenizer gives other ids around character {self._shift + state.done} when the text is cut "
                f"{state.done} characters before it: it cannot be streamed. "
                f"Texts of up to {self._window_chars} characters are never cut"
            )
        return start

    def _advance(self, cut: Cut) -> None:
        """Start the next window a little before `cut`; the ids between seam and cut will be compared."""
        state = self._state
        seam = self._last_cut(0, cut.char - self._margin)
        anchor = self._last_cut(0, seam.char - self._margin) if seam else None
        state.seam_ids = self._encoding().ids[seam.token : cut.token] if seam and anchor else []
        start = (anchor or seam or Cut(0, 0)).char
        state.start += start + sum(count for place, count in state.gaps if place <= start)
        state.gaps = [(place - start, count) for place, count in state.gaps if place > start]
        state.text = state.text[start:]
        state.done = state.refused = cut.char - start
        state.target = self._window_chars

    # Rows that go on

    @property
    def _shift(self) -> int:
        """What to add to a position after the last gap to have the character of the document."""
        return self._state.start + sum(count for _, count in self._state.gaps)

    def _words(self) -> LongWords | None:
        words = self._splitting.words
        self._no_row = words if isinstance(words, str) else ""
        return None if isinstance(words, str) else words

    def _spell(self, stop: int) -> Spelled:
        words = self._words()
        assert words is not None
        return words.speller.spell(self._state.text[:stop])

    def _continue_row(self) -> Block | None:
        """What the text after `done` decides, if all of it goes on with the row of the word there."""
        state = self._state
        words = self._words() if state.word is not None else None
        units = words.units.read(state.text[state.done :], state.done) if words is not None else None
        if state.word is None or words is None or units is None:
            return None
        kinds = np.bitwise_and.reduce(units.kinds.members) & np.uint64(state.word.kinds)
        if not words.runs.in_one_word(kinds):
            return None
        state.word.kinds = int(kinds)
        if words.ends(units)[1] < 0:  # there is too little of it to leave anything out
            state.target = len(state.text) + 2 * words.margin
            return self._placed(EMPTY, 0)
        return self._feed(words, state.word, units, 0, state.gaps[-1][0])

    def _start_row(self) -> Block | None:
        """What the window decides, if it ends in a row that is long enough to leave out its middle."""
        state, words = self._state, self._words()
        if words is None or not self._splitting.rules.offsets_hold(state.text):
            return None
        units = words.units.read("x" + state.text, -1)  # marks at the start need a letter
        if units is None:
            return None
        row = words.find_row(units, state.done)
        if row is None:
            return None
        first, kinds = row
        place = int(units.bounds[first])
        encoding = self._encoding()
        tokens = self._tokens_of_word(encoding, place, int(units.bounds[words.ends(units)[0]]))
        in_sight = int(units.bounds[np.searchsorted(units.bounds, place + words.margin)])
        spelled = self._spell(in_sight)
        done, here = np.searchsorted(spelled.starts, [state.done, place]).tolist()
        if tokens is None or here == len(spelled.words):
            return None
        number = spelled.words[here]
        goes_on = state.word is not None and spelled.words[done - 1] == number
        begin = done if goes_on else max(done, int(np.searchsorted(spelled.words, number)))
        if not goes_on and len(units.filled(first, words.ends(units)[0])) <= words.segmenter.least:
            return None
        try:
            head = symbols_of(words.segmenter, spelled.between(begin, here), first=not goes_on, last=False)
            blocks = [] if goes_on else self._before_word(spelled, tokens[0], place)
        except UnprovenError as error:
            self._no_row = str(error)
            return None
        word = state.word = state.word if goes_on and state.word else Word(Path(), 0)
        word.kinds = int(kinds)
        blocks.append(self._extend(words, word, head))
        return Block.join([*blocks, self._feed(words, word, units, first, place)])

    def _tokens_of_word(self, encoding: tokenizers.Encoding, place: int, stop: int) -> tuple[int, int] | None:
        """Those of the word that the characters [place, stop) are in, None if they are in none or several."""
        word = encoding.char_to_word(place)
        return None if word is None or self._word_before(encoding, stop) != word else encoding.word_to_tokens(word)

    def _word_before(self, encoding: tokenizers.Encoding, char: int) -> int | None:
        """The word of the last character before this one that is in any."""
        words = (encoding.char_to_word(before) for before in range(char - 1, -1, -1))
        return next((word for word in words if word is not None), None)

    def _before_word(self, spelled: Spelled, token: int, stop: int) -> list[Block]:
        """The ids that are left before token `token` and character `stop`, where a word begins."""
        start = self._resume(self._encoding())
        ended = [] if self._state.word is None else [self._finish_word(self._state.word, spelled, stop)]
        return [*ended, self._block(start, max(start, token))]

    def _finish_word(self, word: Word, spelled: Spelled, stop: int) -> Block:
        """The rest of its ids up to character `stop`. spelled: the window at least one character further."""
        words, state = self._words(), self._state
        assert words is not None
        begin = int(np.searchsorted(spelled.starts, state.done))
        ends = (
            np.searchsorted(spelled.words, spelled.words[begin - 1], side="right"),
            np.searchsorted(spelled.starts, stop),
        )
        tail = symbols_of(words.segmenter, spelled.between(begin, int(min(ends))), first=False, last=True)
        blocks = [self._extend(words, word, tail), self._placed(words.segmenter.finish(word.path), 0)]
        state.word = None
        return Block.join(blocks)

    def _extend(self, words: LongWords, word: Word, symbols: Symbols) -> Block:
        """`symbols` with positions in the window after its last gap."""
        shift = self._shift
        placed = Symbols(symbols.symbols, symbols.starts + shift, symbols.ends + shift)
        return self._placed(words.segmenter.extend(word.path, placed), 0)

    def _feed(self, words: LongWords, word: Word, units: Units, first: int, place: int) -> Block:
        """Give the units from `first` on to the model, but for the last ones, and leave them out of the window, at
        `place`."""
        state = self._state
        end, kept = words.ends(units)
        block = self._extend(words, word, units.symbols(first, end))
        left_out = int(units.bounds[kept]) - place
        state.text = state.text[:place] + state.text[place + left_out :]
        before = state.gaps.pop()[1] if state.gaps and state.gaps[-1][0] == place else 0
        state.gaps.append((place, before + left_out))
        state.done = state.refused = int(units.bounds[end]) - left_out
        state.target = max(self._window_chars, len(state.text) + 2 * words.margin)
        self._encoded = None
        if word.path.size > self._max_uncut_chars:
            raise self._too_long(f"none of the tokens of the last {word.path.size} symbols is decided")
        return block
