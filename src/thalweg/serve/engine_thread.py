"""The one thread that steps the engine of a model.

Documents come in from any thread, as the engine allows. What a step has finished goes out at once: to receivers in an
event loop by one call for all of them, to others directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from thalweg.engine.engine import Engine
from thalweg.engine.results import DocumentState, Failure, Pooled
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import TokenSource
from thalweg.serve.logs import log_failure

T = TypeVar("T")

RATE_SECONDS = 10.0
"""Seconds of work over which the rate is measured."""


class Receiver(Protocol):
    """Where the results of a document go. `loop`: the event loop that is to call `receive`; None: the engine's thread
    does, and `receive` must be quick."""

    loop: asyncio.AbstractEventLoop | None

    def receive(self, result: Pooled | Failure) -> None: ...


class EngineThread:
    """Steps an engine while there is work.

    Args:
        engine: driven by nobody else.
        name: of the thread.
        on_step: called after every step with its tokens, its seconds, and the tokens of each client.
    """

    def __init__(
        self, engine: Engine, name: str, on_step: Callable[[int, float, Counter[Hashable]], None] | None = None
    ) -> None:
        self.engine = engine
        self._on_step = on_step
        self._receivers: dict[int, Receiver] = {}
        self._keys = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._closed = False
        self._tokens = self._seconds = 0.0  # of the work done lately
        self._thread = threading.Thread(target=self._run, name=f"thalweg-engine-{name}", daemon=True)
        self._thread.start()

    def add(
        self,
        source: TokenSource,
        receiver: Receiver,
        *,
        state: DocumentState | None = None,
        keep_state: bool = False,
        shares_state: bool = False,
        sections: TokenSections | None = None,
        client: Hashable = None,
        priority: int = 0,
    ) -> int:
        """Take in a document; its key. The arguments are those of `Engine.add`."""
        key = next(self._keys)
        self._receivers[key] = receiver
        try:
            self.engine.add(
                source,
                key,
                state=state,
                keep_state=keep_state,
                shares_state=shares_state,
                section_size=sections,
                client=client,
                priority=priority,
            )
        except BaseException:
            self._receivers.pop(key, None)
            raise
        if self._closed:
            self.remove(key)
            raise RuntimeError("the engine's thread has ended")
        return key

    def remove(self, key: int) -> None:
        """Drop a document: its receiver gets nothing from the next step on. It may have left."""
        self._receivers.pop(key, None)
        self.engine.remove(key)

    async def call(self, work: Callable[[], T]) -> T:
        """Have the thread do something between two steps, which wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = _plain(caught)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result, error)

        self._calls.append(run)
        self.engine.interrupt()
        if self._closed:
            raise RuntimeError("the engine's thread has ended")
        return await done

    @property
    def rate(self) -> float:
        """Tokens a second while there is work."""
        return self._tokens / self._seconds if self._seconds else 1000.0

    @property
    def is_alive(self) -> bool:
        """Whether it steps."""
        return self._thread.is_alive()

    def close(self, timeout: float = 10.0) -> None:
        """Drop all documents and end the thread."""
        self._closed = True
        self.engine.interrupt()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closed:
            if self._calls:
                self._calls.popleft()()
            elif self.engine.idle:
                self.engine.wait()
                continue
            began = time.perf_counter()
            try:
                broken = self.engine.read()
                results = self.engine.advance()
            except BaseException as error:
                # A step that was left half done cannot be continued, whoever's documents were in it.
                log_failure("a step of the engine", error)
                keys = self.engine.keys()
                for key in keys:
                    self.engine.remove(key)
                self._deliver([Failure(key, _plain(error)) for key in keys])
                continue
            self._measure(time.perf_counter() - began)
            for _, cause in broken:
                log_failure("a document", cause)
            self._deliver([*results, *(Failure(key, cause) for key, cause in broken)])
        keys = self.engine.keys()
        for key in keys:
            self.engine.remove(key)
        self._deliver([Failure(key, RuntimeError("the server ends")) for key in keys])
        self.engine.tidy()

    def _measure(self, seconds: float) -> None:
        tokens = self.engine.last_tokens.total()
        if not tokens:
            return
        kept = math.exp(-seconds / RATE_SECONDS)
        self._tokens, self._seconds = kept * self._tokens + tokens, kept * self._seconds + seconds
        if self._on_step is not None:
            self._on_step(tokens, seconds, self.engine.last_tokens)

    def _deliver(self, results: list[Pooled | Failure]) -> None:
        in_loops: dict[asyncio.AbstractEventLoop, list[tuple[Receiver, Pooled | Failure]]] = {}
        for result in results:
            ended = isinstance(result, Failure) or result.last
            receiver = self._receivers.pop(result.key, None) if ended else self._receivers.get(result.key)
            if receiver is None:
                continue
            if receiver.loop is None:
                receiver.receive(result)
            else:
                in_loops.setdefault(receiver.loop, []).append((receiver, result))
        for loop, batch in in_loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(_hand_out, batch)


def _settle(future: asyncio.Future[T], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _hand_out(batch: list[tuple[Any, Pooled | Failure]]) -> None:
    for receiver, result in batch:
        receiver.receive(result)


def _plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
