"""Text, whole or in pieces, to token ids.

Three rules hold everywhere: the ids are those of the checkpoint's own tokenizer on the whole text, however the text
arrives; the post-processor of tokenizer.json is never used, EOS (and BOS, if asked for) is appended here; nothing is
cut unless `max_length` is set, and then the cut is reported.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from thalweg.checks import one_of, whole_number
from thalweg.errors import InvalidInputError
from thalweg.tokenization.backend import (
    MAX_UNCUT_CHARS,
    WHOLE_CHARS,
    WINDOW_CHARS,
    Backend,
    Block,
    SpecialTokens,
    Window,
)
from thalweg.tokenization.folder import load_backend
from thalweg.tokenization.text import TextSource, check_surrogates, text_pieces

__all__ = ["TextSource", "TokenStream", "Tokenizer"]

SLOW = 0.02
"""Seconds after which a piece of text came slowly: longer than it takes to tokenise what came before."""

_BATCH_CHARS = 1 << 20  # bounds the memory of the library's encodings, about 100 bytes a token


TRIAL = " and so on" * (WINDOW_CHARS // 5)
"""A text that windows of unknown origin are tried out on."""


class Tokenizer:
    """The tokenizer of one checkpoint.

    `eos_token_id` None appends nothing, else it is appended `n_eos` times; `bos_token_id` None (the default) prepends
    nothing; `prefix` and `suffix` are the ids that every text gets. `special_tokens`: whether the literal of a special
    token in a text or a prompt is that token or the text that it is. `max_uncut_chars`: see `stream`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_token_id: int | None,
        bos_token_id: int | None = None,
        n_eos: int = 1,
        special_tokens: SpecialTokens = "token",
        max_uncut_chars: int = MAX_UNCUT_CHARS,
    ) -> None:
        one_of("special_tokens", special_tokens, get_args(SpecialTokens))
        whole_number("max_uncut_chars", max_uncut_chars, WHOLE_CHARS)
        for name, token_id in (("eos_token_id", eos_token_id), ("bos_token_id", bos_token_id)):
            if token_id is not None and token_id < 0:
                raise InvalidInputError(f"{name} must be None or a token id, not {token_id}")
        self._backend = backend.reading(special_tokens)
        self.special_tokens: SpecialTokens = special_tokens
        self.max_uncut_chars = max_uncut_chars
        self._n_eos = n_eos
        self.eos_token_id = eos_token_id
        self.bos_token_id = bos_token_id
        self.prefix = [] if bos_token_id is None else [bos_token_id]
        self.suffix = [] if eos_token_id is None else [eos_token_id] * n_eos

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        eos_token_id: int | None,
        bos_token_id: int | None = None,
        n_eos: int = 1,
        special_tokens: SpecialTokens = "token",
        max_uncut_chars: int = MAX_UNCUT_CHARS,
    ) -> "Tokenizer":
        """The tokenizer of a checkpoint folder; see `load_backend` for the files and errors."""
        return cls(
            load_backend(folder, special_tokens),
            eos_token_id=eos_token_id,
            bos_token_id=bos_token_id,
            n_eos=n_eos,
            special_tokens=special_tokens,
            max_uncut_chars=max_uncut_chars,
        )

    def with_settings(
        self, special_tokens: SpecialTokens | None = None, max_uncut_chars: int | None = None
    ) -> "Tokenizer":
        """The same tokenizer with other settings; None leaves one as it is."""
        return Tokenizer(
            self._backend,
            eos_token_id=self.eos_token_id,
            bos_token_id=self.bos_token_id,
            n_eos=self._n_eos,
            special_tokens=self.special_tokens if special_tokens is None else special_tokens,
            max_uncut_chars=self.max_uncut_chars if max_uncut_chars is None else max_uncut_chars,
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._backend.vocab_size

    def encode_batch(self, texts: Sequence[str], prompt: str = "") -> list[npt.NDArray[np.int32]]:
        """The ids of each text after `prompt`, BOS and EOS included: one int32 array (n,) for each.

        Raises InvalidInputError for a text that is no str, TokenizationError for one with a lone surrogate or one
        that cannot be tokenised in bounded memory (see `stream`).
        """
        if isinstance(texts, str):
            raise InvalidInputError(f"texts must be a sequence of str; for one text pass [{texts[:20]!r}…]")
        check_surrogates(prompt, where="the prompt's ")
        results: list[npt.NDArray[np.int32]] = []
        group: list[str] = []
        chars = 0
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidInputError(f"text {index} must be str, not {type(text).__name__}: {text!r}")
            check_surrogates(text, where=f"text {index}: ")
            is_long = len(prompt) + len(text) > WHOLE_CHARS
            if is_long or chars > _BATCH_CHARS:
                results += self._encode_group(group)
                group, chars = [], 0
            if is_long:
                results.append(self.stream(text, prompt).take_all())
            else:
                group.append(prompt + text)
                chars += len(group[-1])
        return results + self._encode_group(group)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer], *, skip_special_tokens: bool = True) -> str:
        """The text that ids stand for, as far as ids say: what the tokenizer normalised stays so, and "\ufffd" stands
        for the parts of characters.

        Raises:
            InvalidInputError: an id that the tokenizer does not have.
        """
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidInputError(f"there is no token {token}: ids are 0 to {self.vocab_size - 1}")
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def shorten(self, ids: npt.NDArray[np.int32], max_length: int) -> tuple[npt.NDArray[np.int32], bool]:
        """Ids (n,) of one text cut to `max_length` as `stream` cuts them, EOS last, and whether that took any away."""
        self._check_max_length(max_length)
        if len(ids) <= max_length:
            return ids, False
        return np.concatenate([ids[: max_length - len(self.suffix)], np.array(self.suffix, dtype=np.int32)]), True

    def stream(
        self,
        text: TextSource,
        prompt: str = "",
        *,
        max_length: int | None = None,
        with_offsets: bool = False,
        eager: bool = False,
        window_chars: int = WINDOW_CHARS,
        max_uncut_chars: int | None = None,
    ) -> "TokenStream":
        """The ids of one text as a stream, in memory that does not grow with the text.

        text: a str, UTF-8 bytes, an iterable of pieces of one of them (cut anywhere), or an open file.
        max_length: keep at most so many ids, the last one being EOS; `TokenStream.truncated` tells. None keeps all.
        eager: give out what is there when pieces come slowly, instead of waiting for as many ids as were asked for.
        window_chars: characters encoded at a time. A shorter text is always encoded whole.
        max_uncut_chars: most characters in memory when a text cannot be tokenised in parts (a row of spaces, or a
            tokenizer whose settings are unknown to `thalweg.tokenization.cuts`); beyond it `take` raises
            TokenizationError. Such a text needs 200 (ASCII) to 650 bytes (CJK) a character. None is the tokenizer's
            own. That of the RWKV models can be cut anywhere and never comes near it.
        """
        if max_uncut_chars is None:
            max_uncut_chars = self.max_uncut_chars
        if max_length is not None:
            self._check_max_length(max_length)
        if not 1 <= window_chars <= max_uncut_chars:
            raise InvalidInputError(
                f"window_chars must be in 1 … max_uncut_chars={max_uncut_chars}, not {window_chars}"
            )
        check_surrogates(prompt, where="the prompt's ")
        window = self._backend.window(
            with_offsets=with_offsets, skip=len(prompt), window_chars=window_chars, max_uncut_chars=max_uncut_chars
        )
        pieces = chain([prompt], text_pieces(text, max(1, window_chars // 4)))
        ends = {"prefix": self.prefix, "suffix": self.suffix}
        return TokenStream(window, pieces, **ends, max_length=max_length, with_offsets=with_offsets, eager=eager)

    def window(self) -> Window:
        """For the ids of one text and their characters, of the text alone: without BOS and EOS."""
        return self._backend.window(
            with_offsets=True, skip=0, window_chars=WINDOW_CHARS, max_uncut_chars=self.max_uncut_chars
        )

    def begin(self, prompt: str = "", *, with_offsets: bool = False) -> Window:
        """The window of a text of which nothing is known but its prompt."""
        check_surrogates(prompt, where="the prompt's ")
        return self._backend.window(
            with_offsets=with_offsets,
            skip=len(prompt),
            window_chars=WINDOW_CHARS,
            max_uncut_chars=self.max_uncut_chars,
        )

    def restored(self, state: Mapping[str, Any], *, with_offsets: bool = False) -> Window:
        """The window of `begin` that had this state, which may have come from anywhere.

        Raises:
            ValueError, TypeError, KeyError: it cannot be that of any text.
        """
        settings = {
            "with_offsets": with_offsets,
            "window_chars": WINDOW_CHARS,
            "max_uncut_chars": self.max_uncut_chars,
        }
        return self._backend.restored({**state, **settings})

    def try_out(self, window: Window) -> list[Block]:
        """Have a copy of a window read on and end, as what a file says of it may be anything; the ids of it.

        Raises:
            Exception: of whatever kind: it is no window of a text.
        """
        going_on, ending = window.copy(), window.copy()
        blocks = [*going_on.flush(), *going_on.push(TRIAL)]
        for block in (*blocks, *ending.finish()):
            self._check_ids(block.ids)
        return blocks

    def _check_ids(self, ids: npt.NDArray[np.int32]) -> None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"it holds the id {ids.max()}")

    def resumed(
        self, state: Mapping[str, Any], ids: npt.NDArray[np.int32], text: TextSource, *, with_offsets: bool
    ) -> "TokenStream":
        """The stream of which `TokenStream.state` gave this, which may have come from anywhere.

        Args:
            ids: (n,) those that it had ready; text: what it had not read.

        Raises:
            Exception: of whatever kind: it cannot be that of any text.
        """
        settings = {
            "with_offsets": with_offsets,
            "window_chars": WINDOW_CHARS,
            "max_uncut_chars": self.max_uncut_chars,
        }
        offsets = np.array(state["offsets"], dtype=np.int64).reshape(-1, 2) if with_offsets else None
        self._check_ids(ids)
        if offsets is not None and len(offsets) != len(ids):
            raise ValueError("it has other offsets than ids")
        window = self._backend.restored({**state["window"], **settings})
        self.try_out(window)
        stream = TokenStream(
            window,
            text_pieces(text, WINDOW_CHARS // 4),
            prefix=[],
            suffix=self.suffix,
            max_length=None,
            with_offsets=with_offsets,
            eager=False,
        )
        stream.go_on(Block(ids, offsets), state)
        return stream

    def _encode_group(self, texts: list[str]) -> list[npt.NDArray[np.int32]]:
        prefix, suffix = np.array(self.prefix, dtype=np.int32), np.array(self.suffix, dtype=np.int32)
        return [np.concatenate([prefix, ids, suffix]) for ids in self._backend.encode_batch(texts)]

    def _check_max_length(self, max_length: int) -> None:
        least = max(1, len(self.prefix) + len(self.suffix))
        if max_length < least:
            raise InvalidInputError(f"max_length must be at least {least}, not {max_length}")


class TokenStream:
    """The ids of one text, pulled in order; EOS is the last of them.

    `truncated` is final once a take has said `last`: whether `max_length` cut the text. `is_slow`: whether the last
    piece had to be waited for, so that an eager take gave out what was there.
    """

    def __init__(
        self,
        window: Window,
        pieces: Iterator[str],
        *,
        prefix: Sequence[int],
        suffix: Sequence[int],
        max_length: int | None,
        with_offsets: bool,
        eager: bool,
    ) -> None:
        self.truncated = False
        self.is_slow = False
        self._eager = eager
        self._with_offsets = with_offsets
        self._window = window
        self._pieces = pieces
        self._suffix = suffix
        self._room = sys.maxsize if max_length is None else max_length - len(prefix) - len(suffix)
        self._char = 0  # where the last id ends
        self._rest = Block.specials(prefix, 0, with_offsets=with_offsets)
        self._complete = False  # the rest is all that is left
        self._error: Exception | None = None

    def take(self, n: int) -> tuple[npt.NDArray[np.int32], bool]:
        """The next n ids as int32 (k,), fewer only if the text ends or comes slowly, and whether it ends with them.

        Raises TokenizationError for a text that is not text or cannot be cut (see `Tokenizer.stream`).
        """
        block, last = self._take(n)
        return block.ids, last

    def take_with_offsets(self, n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], bool]:
        """As `take`, with offsets int64 (k, 2) between: the characters [start, end) of the text behind each id.

        The prompt is no part of the text: its ids have offsets (0, 0). EOS has (end, end), where end is the number of
        characters, or the end of the last id kept if `max_length` cut the text.
        """
        block, last = self._take(n)
        if block.offsets is None:
            raise InvalidInputError("this stream was opened without offsets: pass with_offsets=True to stream()")
        return block.ids, block.offsets, last

    def peek(self, n: int) -> npt.NDArray[np.int32]:
        """The next n ids (fewer only if the text ends), int32 (k,), which the next take gives too."""
        block, _ = self._take(n)
        self._rest = Block.join([block, self._rest])
        return block.ids

    def state(self) -> dict[str, Any]:
        """Where it is, as JSON holds it: `Tokenizer.resumed` goes on from there, with the `ids` beside it."""
        return {
            "window": self._window.state(),
            "offsets": None if self._rest.offsets is None else self._rest.offsets.tolist(),
            "room": self._room,
            "char": self._char,
            "complete": self._complete,
            "truncated": self.truncated,
        }

    @property
    def ended(self) -> bool:
        """Whether all ids have been taken."""
        return self._complete and not len(self._rest.ids)

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """(n,): the next ids, as far as they are ready."""
        return self._rest.ids

    def go_on(self, rest: Block, state: Mapping[str, Any]) -> None:
        """Be where a stream was that had this state, and these ids ready."""
        self._rest = rest
        self._room = whole_number("room", state["room"], 0, sys.maxsize)
        self._char = whole_number("char", state["char"], 0)
        self._complete, self.truncated = bool(state["complete"]), bool(state["truncated"])

    def take_all(self) -> npt.NDArray[np.int32]:
        """All ids that are left, int32 (k,)."""
        return self.take(sys.maxsize)[0]

    def _take(self, n: int) -> tuple[Block, bool]:
        if n < 1:
            raise InvalidInputError(f"take needs a positive number of ids, not {n}")
        if self._error is not None:
            raise self._error
        blocks = [self._rest]
        count = len(self._rest.ids)
        try:
            while count <= n and not self._complete:  # one more than n shows the end
                new = self._read()
                blocks += new
                count += sum(len(block.ids) for block in new)
                if self.is_slow and 1 < count <= n and not self._complete:
                    n = count - 1
        except Exception as error:
            self._error = error  # a later take must not pass for the end of the text
            raise
        joined = Block.join(blocks)
        self._rest = joined.part(n, None)
        return joined.part(0, n), count <= n

    def _read(self) -> list[Block]:
        """The ids that one more piece of the text decides."""
        asked = time.monotonic()
        piece = next(self._pieces, None)
        self.is_slow = self._eager and time.monotonic() - asked > SLOW
        blocks = self._window.finish() if piece is None else self._window.push(piece)
        if self.is_slow and piece is not None:
            blocks += self._window.flush()
        kept = [self._kept(block) for block in blocks]
        self._complete = self.truncated or piece is None
        if self._complete:
            end = self._char if self.truncated else self._window.end
            kept.append(Block.specials(self._suffix, end, with_offsets=self._with_offsets))
        return kept

    def _kept(self, block: Block) -> Block:
        kept = block.part(0, self._room)
        self._room -= len(kept.ids)
        self.truncated |= len(kept.ids) < len(block.ids)
        if kept.offsets is not None and len(kept.ids):
            self._char = int(kept.offsets[-1, 1])
        return kept
