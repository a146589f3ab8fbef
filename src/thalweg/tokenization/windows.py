"""The pieces of a text → blocks of its ids, with a bounded window of text in memory.

A window starts at a safe cut (the anchor) and is encoded whole. Its ids are given out from where the last window
stopped up to its own last safe cut; the rest of its text, and a few words before it, start the next window. Those few
words are there because a tokenizer may treat the start of a text specially (a prefix space): their ids are dropped.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tokenizers

from thalweg.errors import TokenizationError
from thalweg.tokenization.backend import MAX_UNCUT_CHARS, WINDOW_CHARS, Block
from thalweg.tokenization.cuts import CutRules


class _Cut(NamedTuple):
    char: int  # position in the window
    token: int  # first token of the window after it


class WindowEncoder:
    """One text on its way through the tokenizer; `blocks()` gives its ids once.

    `skip` characters at the front (the prompt) are encoded, but offsets count from their end, never below 0.
    `rules` is called when the text turns out to be longer than a window.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        rules: Callable[[], CutRules],
        pieces: Iterator[str],
        *,
        with_offsets: bool = False,
        skip: int = 0,
        window_chars: int = WINDOW_CHARS,
        max_uncut_chars: int = MAX_UNCUT_CHARS,
    ) -> None:
        self._backend = backend
        self._rules = rules
        self._pieces = pieces
        self._with_offsets = with_offsets
        self._window_chars = window_chars
        self._max_uncut_chars = max_uncut_chars
        self._margin = max(1, window_chars // 256)  # characters kept between cut, seam, anchor and window end
        self._ended = False
        self._text = ""  # the window
        self._origin = -skip  # character of the document at which it starts
        self._done = 0  # its characters whose ids have been given out
        self._refused = 0  # its characters up to here hold no cut
        self._encoded: tokenizers.Encoding | None = None
        self._seam_ids: list[int] = []  # ids just before `_done`, which this window must give again

    @property
    def end(self) -> int:
        """Characters of the text read so far, the skipped ones not counted."""
        return self._origin + len(self._text)

    def blocks(self) -> Iterator[Block]:
        """Raises TokenizationError where more than `max_uncut_chars` characters allow no cut."""
        target = self._window_chars
        while True:
            self._read(target)
            if self._ended:
                yield self._block(len(self._encoding()))
                return
            cut = self._last_cut(self._refused, len(self._text) - self._margin)
            if cut is None:
                self._refused = len(self._text) - self._margin
                target = self._larger(target)
            else:
                yield self._block(cut.token)
                self._advance(cut)
                target = self._window_chars

    def _read(self, target: int) -> None:
        """Extend the window to more than `target` characters, or to the end of the text."""
        parts = [self._text]
        length = len(self._text)
        while length <= target and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            else:
                parts.append(piece)
                length += len(piece)
        self._text = "".join(parts)
        self._encoded = None

    def _encoding(self) -> tokenizers.Encoding:
        if self._encoded is None:
            self._encoded = self._backend.encode(self._text, add_special_tokens=False)
        return self._encoded

    def _last_cut(self, low: int, high: int) -> _Cut | None:
        """The last safe cut in (low, high]."""
        rules = self._rules()
        if rules.refusal is not None:
            return None
        for char in range(high, low, -1):
            if rules.allows(self._text[char - 1], self._text[char]):
                token = rules.token_at(self._encoding(), self._text, char)
                if token is not None:
                    return _Cut(char, token)
        return None

    def _larger(self, target: int) -> int:
        refusal = self._rules().refusal
        if target < self._max_uncut_chars:
            return self._max_uncut_chars if refusal else min(2 * target, self._max_uncut_chars)
        reason = refusal or "there is no place whose two sides tokenise independently; put spaces or line breaks there"
        raise TokenizationError(
            f"{len(self._text)} characters from character {max(self._origin, 0)} on cannot be tokenised in parts: "
            f"{reason}, or raise max_uncut_chars={self._max_uncut_chars} and with it the memory"
        )

    def _block(self, stop: int) -> Block:
        """The window's ids from where the last window stopped up to token `stop`."""
        encoding = self._encoding()
        start = self._resume(encoding)
        offsets = None
        if self._with_offsets:
            offsets = np.array(encoding.offsets[start:stop], dtype=np.int64).reshape(-1, 2) + self._origin
            np.maximum(offsets, 0, out=offsets)
        return Block(np.array(encoding.ids[start:stop], dtype=np.int32), offsets)

    def _resume(self, encoding: tokenizers.Encoding) -> int:
        if self._done == 0:
            return 0
        start = self._rules().token_at(encoding, self._text, self._done)
        if start is None or encoding.ids[start - len(self._seam_ids) : start] != self._seam_ids:
            raise TokenizationError(
                f"this tokenizer gives other ids around character {self._origin + self._done} when the text is cut "
                f"{self._done} characters before it: it cannot be streamed. "
                "Pass window_chars and max_uncut_chars of at least the text's length"
            )
        return start

    def _advance(self, cut: _Cut) -> None:
        """Start the next window a little before `cut`; the ids between seam and cut will be compared."""
        seam = self._last_cut(0, cut.char - self._margin)
        anchor = self._last_cut(0, seam.char - self._margin) if seam else None
        self._seam_ids = self._encoding().ids[seam.token : cut.token] if seam and anchor else []
        start = (anchor or seam or _Cut(0, 0)).char
        self._text = self._text[start:]
        self._origin += start
        self._done = self._refused = cut.char - start


def find_mismatch(backend: tokenizers.Tokenizer, rules: CutRules) -> str | None:
    """A text whose ids differ when it goes through tiny windows, None if all of a set of awkward ones agree."""
    return next((text for text in _awkward_texts(backend) if not _agrees(backend, rules, text)), None)


def _agrees(backend: tokenizers.Tokenizer, rules: CutRules, text: str) -> bool:
    whole = backend.encode(text, add_special_tokens=False)
    windows = WindowEncoder(backend, lambda: rules, iter(text), with_offsets=True, window_chars=12)
    try:
        block = Block.join(list(windows.blocks()))
    except TokenizationError:
        return False
    assert block.offsets is not None
    spans = [(start, stop) for start, stop in block.offsets.tolist()]
    return (block.ids.tolist(), spans) == (whole.ids, whole.offsets)


_AWKWARD_TEXTS = (
    "It's one word, two  words;   three\n\nlines\r\n\tand 3,141 tabs\t\tof 'quoted' text... (so: [on]) don't! <a b='c'",
    "naïve café ﬁne ½ Ⅳ ＡＢＣ，全角。日本語のテキスト、です。 한국어 글, नमस्ते दुनिया। \u00a0 \u3000x\ufeff ",
    "e\u0301, a\u0308\u0323 b\u0338 ,\u0301x \U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea x\u200by \ufe70 \x00 ",
)


def _awkward_texts(backend: tokenizers.Tokenizer) -> Iterator[str]:
    for text in _AWKWARD_TEXTS:
        yield text * 2  # so that the tokens of the start come once more in the middle
    contents = [token.content for token in backend.get_added_tokens_decoder().values()][:8]
    yield "".join(f"word{content}, {content} {content[:-1]} x {content[1:]}\n" for content in contents)
