"""Texts to token ids, off the event loop and off the engine's thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.embedder.documents import TokenizedText
from thalweg.engine.sources import Answer, TokenArray
from thalweg.errors import TokenizationError
from thalweg.tokenization.tokenizer import Tokenizer

Ids = npt.NDArray[np.int32]

SHORT_CHARS = 8192
"""Characters below which a text is tokenised whole, together with others."""

GROUP_CHARS = 1 << 16
"""Characters that are tokenised at a time: some 20 ms, for which others wait."""

BLOCK = 1024
"""Ids that are made at a time of a long text."""

AHEAD = 4 * BLOCK
"""Ids of a long text that are held ready."""


class _Asked(NamedTuple):
    texts: Sequence[str]
    prompt: str
    found: asyncio.Future[list[Ids]]


class TextGroups:
    """Short texts of all requests, tokenised in groups: what comes while a group is under way is the next.

    Args:
        tokenizer: of the model.
        pool: where it runs.
    """

    def __init__(self, tokenizer: Tokenizer, pool: Executor) -> None:
        self._tokenizer = tokenizer
        self._pool = pool
        self._asked: deque[_Asked] = deque()
        self._running = False

    async def ids(self, texts: Sequence[str], prompt: str) -> list[Ids]:
        """The ids (n,) of each text after `prompt`, as `Tokenizer.encode_batch` gives them, with its errors."""
        found: asyncio.Future[list[Ids]] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(texts, prompt, found))
        if not self._running:
            self._begin()
        return await found

    def _begin(self) -> None:
        group: list[_Asked] = []
        chars = 0
        while self._asked and (not group or chars < GROUP_CHARS):
            asked = self._asked.popleft()
            if not asked.found.done():
                group.append(asked)
                chars += sum(map(len, asked.texts)) + len(asked.texts) * len(asked.prompt)
        self._running = bool(group)
        if group:
            future = asyncio.get_running_loop().run_in_executor(self._pool, self._tokenized, group)
            future.add_done_callback(lambda done: self._give(group, done))

    def _tokenized(self, group: Sequence[_Asked]) -> list[list[Ids] | Exception]:
        texts = [text for asked in group for text in asked.texts]
        if len({asked.prompt for asked in group}) == 1:
            try:
                ids = iter(self._tokenizer.encode_batch(texts, group[0].prompt))
                return [[next(ids) for _ in asked.texts] for asked in group]
            except TokenizationError:  # one of them is no text: the others are
                pass
        return [self._alone(asked) for asked in group]

    def _alone(self, asked: _Asked) -> list[Ids] | Exception:
        try:
            return self._tokenizer.encode_batch(asked.texts, asked.prompt)
        except Exception as error:
            return error

    def _give(self, group: Sequence[_Asked], done: asyncio.Future[list[list[Ids] | Exception]]) -> None:
        error = None if done.cancelled() else done.exception()
        results = [error] * len(group) if error or done.cancelled() else done.result()
        for asked, result in zip(group, results, strict=True):
            if asked.found.done():
                continue
            if isinstance(result, list):
                asked.found.set_result(result)
            else:
                asked.found.set_exception(result or RuntimeError("the server ends"))
        self._begin()


class LongText:
    """A document whose ids are made by other threads, some ahead of what the engine asks for; see `TokenSource`.

    It never blocks: where nothing is ready it says so, and wakes the engine later.

    Args:
        text: pulled by one thread at a time.
        submit: has another thread call a function.
    """

    def __init__(self, text: TokenizedText, submit: Callable[[Callable[[], None]], object]) -> None:
        self.text = text
        self.taken = 0  # ids that the engine has asked for
        self._submit = submit
        self._lock = threading.Lock()
        self._blocks: deque[TokenArray] = deque()
        self._ready = 0
        self._ends: list[int] = []
        self._error: BaseException | None = None
        self._ended = self._reading = self._closed = self._paused = False
        self._wake: Callable[[], None] = lambda: None

    def subscribe(self, wake: Callable[[], None]) -> None:
        """See `TokenSource`."""
        self._wake = wake

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        with self._lock:
            found: list[TokenArray] = []
            count = 0
            while count < n and self._blocks and not self._paused:
                block = self._blocks.popleft()
                if len(block) > n - count:
                    self._blocks.appendleft(block[n - count :])
                    block = block[: n - count]
                found.append(block)
                count += len(block)
            self._ready -= count
            self.taken += count
            if not self._ready and not self._paused and self._error is not None:
                raise self._error
            self._read_on()
            answer = Answer.ENDED if self._ended and not self._ready else Answer.MORE if count == n else Answer.WAITING
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64), answer

    def section_ends(self) -> list[int]:
        """See `TokenSource`."""
        with self._lock:
            found, self._ends = self._ends, []
        return found

    def close(self) -> None:
        """See `TokenSource`."""
        with self._lock:
            self._closed = True
            self._blocks.clear()

    def pause(self, paused: bool) -> None:
        """Give nothing until it is called again: nobody takes the results."""
        with self._lock:
            self._paused = paused
        if not paused:
            self._wake()

    def _read_on(self) -> None:
        if self._ready < AHEAD and not (self._ended or self._reading or self._closed or self._error is not None):
            self._reading = True
            self._submit(self._read)

    def _read(self) -> None:
        ids: TokenArray = np.empty(0, dtype=np.int64)
        answer, error, ends = Answer.MORE, None, []
        try:
            if not self._closed:
                ids, answer = self.text.take(BLOCK)
                ends = self.text.section_ends()
        except BaseException as caught:  # the engine's, where it asks for more
            error = caught
        with self._lock:
            self._reading = False
            if len(ids):
                self._blocks.append(ids)
                self._ready += len(ids)
            self._ends += ends
            self._ended, self._error = answer is Answer.ENDED, error
            self._read_on()
        self._wake()
