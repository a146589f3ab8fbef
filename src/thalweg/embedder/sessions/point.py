"""Where a growing text stands, and the tokens that more of it adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thalweg.engine.results import DocumentState
from thalweg.engine.sources import Answer, TokenArray
from thalweg.engine.states import nbytes
from thalweg.tokenization.backend import Window
from thalweg.tokenization.text import Utf8Decoder, check_surrogates
from thalweg.tokenization.tokenizer import Tokenizer

PIECE = 1024
"""Characters of a str that are tokenised at a time; of bytes four times as many, which may be as many characters."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Point:
    """A value: whoever goes on from it copies the window first.

    window: the characters whose ids the tokenizer cannot decide yet; held: ids (n,) that are decided, but may be the
    text's last and are kept back for pooling; state: after all ids before these, None before the first; pending: bytes
    of a character that has not come to its end; n_bytes: bytes so far.
    """

    window: Window
    held: Ids
    state: DocumentState | None = None
    pending: bytes = b""
    n_bytes: int = 0

    @property
    def n_run(self) -> int:
        """Tokens that have gone through the model."""
        return 0 if self.state is None else self.state.n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the state and the sums."""
        return 0 if self.state is None else nbytes(self.state.model) + self.state.sums.total.nbytes


def start(tokenizer: Tokenizer, prompt: str) -> Point:
    """A text of which nothing is known but its prompt."""
    window = tokenizer.begin(prompt)
    blocks = [block.ids for block in window.push(prompt)]
    return Point(window, np.concatenate([np.array(tokenizer.prefix, dtype=np.int32), *blocks]))


def ending(tokenizer: Tokenizer, point: Point, eos: int | None) -> Ids:
    """The ids (n,) that are left if the text ends here. `eos`: what stands for a text without any."""
    Utf8Decoder(point.pending, point.n_bytes).finish()
    blocks = [block.ids for block in point.window.copy().finish()]
    ids = np.concatenate([point.held, *blocks, np.array(tokenizer.suffix, dtype=np.int32)])
    if not len(ids) and not point.n_run and eos is not None:
        return np.array([eos], dtype=np.int32)
    return ids


class Continuation:
    """Ids that go on from a state; see `TokenSource`."""

    keep_state = False

    def __init__(self, ids: Ids, state: DocumentState | None) -> None:
        self.state = state
        self._ids = ids

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        ids, self._ids = self._ids[:n], self._ids[n:]
        return ids, Answer.MORE if len(self._ids) else Answer.ENDED


class Growth:
    """The ids that more text decides, as a source that keeps its state at the end; see `TokenSource`.

    Args:
        point: where the text stands. It stays as it is.
        texts: what comes next, str or UTF-8 bytes cut anywhere.
        n_held: decided ids that are kept back.
    """

    keep_state = True

    def __init__(self, point: Point, texts: Iterable[str | bytes], n_held: int) -> None:
        self.state = point.state
        self._decoder = Utf8Decoder(point.pending, point.n_bytes)
        self._window = point.window.copy()
        self._pieces = self._decoded(texts)
        self._n_held = n_held
        self._ids = point.held
        self._ended = False

    def begin(self) -> bool | Exception:
        """Whether there is any id to be run, or why nothing can be read."""
        try:
            self._read(0)
        except Exception as error:
            return error
        return len(self._ids) > self._n_held

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        self._read(n)  # one more than n shows the end
        count = min(n, len(self._ids) - self._n_held)
        ids, self._ids = self._ids[:count], self._ids[count:]
        return ids, Answer.ENDED if self._ended and len(self._ids) == self._n_held else Answer.MORE

    def end(self, state: DocumentState | None) -> Point:
        """Where the text stands now. state: after what was run."""
        return Point(self._window, self._ids.copy(), state, self._decoder.pending, self._decoder.n_bytes)

    def _read(self, n: int) -> None:
        found = [self._ids]
        count = len(self._ids)
        while count - self._n_held <= n and not self._ended:
            piece = next(self._pieces, None)
            self._ended = piece is None
            blocks = self._window.flush() if piece is None else self._window.push(piece)
            found += [block.ids for block in blocks]
            count += sum(len(block.ids) for block in blocks)
        self._ids = np.concatenate(found)

    def _decoded(self, texts: Iterable[str | bytes]) -> Iterator[str]:
        for text in texts:
            if isinstance(text, bytes):
                for at in range(0, len(text), 4 * PIECE):
                    yield self._decoder.decode(text[at : at + 4 * PIECE])
            else:
                self._decoder.finish()
                for at in range(0, len(text), PIECE):
                    part = text[at : at + PIECE]
                    check_surrogates(part, at)
                    yield part
