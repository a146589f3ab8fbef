"""One text on its way through the engine while it arrives, and what comes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from thalweg.embedder.documents import open_text
from thalweg.embedder.sections import Sections
from thalweg.engine.results import Failure, Pooled
from thalweg.pooling.vectors import FloatArray
from thalweg.serve.model import ServedModel, Wish
from thalweg.serve.texts import AHEAD, LongText
from thalweg.serve.uploads import StreamCall, Upload

MOST_RESULTS = 256
"""Vectors that wait for their client, beyond which its text waits."""


class Found(NamedTuple):
    """A vector (d,) of the tokens [start, stop), and the characters that they stand for; last: there is no other."""

    section: int
    start: int
    stop: int
    chars: tuple[int, int]
    vector: FloatArray
    last: bool


class _Results:
    """What the engine gives for one text; see `Receiver`."""

    def __init__(self, source: LongText, *, in_sections: bool) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._source = source
        self._in_sections = in_sections
        self._queue: asyncio.Queue[tuple[Pooled | Failure, tuple[int, int]]] = asyncio.Queue()
        self._paused = False

    def receive(self, result: Pooled | Failure) -> None:
        """See `Receiver`."""
        chars = (0, 0)
        if self._in_sections and isinstance(result, Pooled):
            chars = self._source.text.characters(result)
        self._queue.put_nowait((result, chars))
        if not self._paused and self._queue.qsize() >= MOST_RESULTS:
            self._paused = True
            self._source.pause(True)

    async def next(self) -> tuple[Pooled, tuple[int, int]]:
        """Raises what the text failed with."""
        result, chars = await self._queue.get()
        if self._paused and self._queue.qsize() <= MOST_RESULTS // 2:
            self._paused = False
            self._source.pause(False)
        if isinstance(result, Failure):
            raise result.error
        return result, chars


async def embed_stream(
    call: StreamCall, model: ServedModel, text: str | None, wish: Wish, sections: Sections | None
) -> AsyncGenerator[Found, None]:
    """The vectors of a text, in order.

    Args:
        text: None: the body.
        sections: how it is cut; None: one vector.

    Raises:
        RequestError: it cannot be read. ThalwegError: it cannot be embedded.
    """
    in_tokens = None
    if sections is not None:
        in_tokens = sections.in_tokens().with_mode(model.embedder.pooling)
    upload = Upload() if text is None else None
    opened = open_text(
        text if upload is None else upload,  # type: ignore[arg-type]
        model.embedder.tokenizer,
        wish.prompt,
        None,
        sections,
        model.eos,
        blocks=upload is not None,
        threaded=False,
    )
    source = LongText(opened, (call.server.upload_pool if upload is not None else model.pool).submit)
    n_tokens = AHEAD if text is None else model.estimate(text)
    filling = None if upload is None else asyncio.ensure_future(upload.receive(call.pieces()))
    key = None
    try:
        with model.admission.held(await model.admission.enter(wish.client, n_tokens, 1)) as ticket:
            if text is not None:
                model.admission.set_tokens(ticket, n_tokens, lambda: source.taken)
            results = _Results(source, in_sections=sections is not None)
            key = model.thread.add(source, results, sections=in_tokens, client=wish.client, priority=wish.priority)
            last = False
            while not last:
                result, chars = await _first(results, filling)
                last = result.last
                (vector,) = model.finished([result.vector], wish)
                yield Found(result.section, result.start, result.stop, chars, vector, last)
    finally:
        if key is not None:
            model.thread.remove(key)
        if filling is not None:
            filling.cancel()
        if upload is not None:
            upload.give_up()


async def _first(results: _Results, filling: asyncio.Task[None] | None) -> tuple[Pooled, tuple[int, int]]:
    """The next result, unless the body breaks off before."""
    asked = asyncio.ensure_future(results.next())
    try:
        while not asked.done():
            waiting = {asked} if filling is None or filling.done() else {asked, filling}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if filling is not None and filling.done():
                filling.result()
        return asked.result()
    finally:
        asked.cancel()
