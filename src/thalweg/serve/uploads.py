"""Bodies that are embedded while they arrive, and answers that leave while they are made."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from thalweg.errors import ThalwegError
from thalweg.serve.bodies import Lease, content_length
from thalweg.serve.errors import RequestError, as_request_error
from thalweg.serve.http import CLIENT_GONE, Call, report, unless_gone
from thalweg.serve.logs import log_failure

if TYPE_CHECKING:
    from thalweg.serve.server import Server

HELD_BYTES = 1 << 17
"""Bytes of an upload that wait to be tokenised, beyond which no more are read."""

NDJSON, EVENTS, PLAIN = "application/x-ndjson", "text/event-stream", "text/plain"


class UploadEndedError(ThalwegError):
    """A body that will not come to its end. Nobody is told: whoever sent it has got an answer, or is gone."""


class Upload:
    """A body on its way from the event loop to the thread that tokenises it, which reads it as pieces of bytes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._changed = threading.Condition()
        self._parts: deque[bytes] = deque()
        self._held = 0
        self._ended = self._broken = False
        self.bytes = 0

    async def receive(self, pieces: AsyncIterator[bytes]) -> None:
        """Take in a whole body, as far as there is room."""
        async for piece in pieces:
            with self._changed:
                self._parts.append(piece)
                self._held += len(piece)
                self.bytes += len(piece)
                if self._held > HELD_BYTES:
                    self._room.clear()
                self._changed.notify_all()
            await self._room.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """Nothing more will come: whoever reads it gets an error, unless it has ended."""
        with self._changed:
            self._broken = not self._ended
            self._parts.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._ended or self._broken)
                if self._broken:
                    raise UploadEndedError("the body ended before its end")
                if not self._parts:
                    return
                piece = self._parts.popleft()
                self._held -= len(piece)
                if self._held <= HELD_BYTES:
                    with contextlib.suppress(RuntimeError):  # the loop is closed
                        self._loop.call_soon_threadsafe(self._room.set)
            yield piece


async def pieces(request: Request, timeout: float) -> AsyncGenerator[bytes, None]:
    """A body piece by piece.

    Raises:
        RequestError: 408, nothing came for `timeout` seconds; 415, it is compressed.
        ClientDisconnect: the client has gone.
    """
    content_length(request)
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), timeout)
        except asyncio.TimeoutError:
            raise RequestError("timeout", f"nothing of the body has arrived for {timeout:g} s", status=408) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body", False):
            return


class StreamCall(Call):
    """A request whose answer leaves in parts."""

    def __init__(self, server: Server, request: Request, lease: Lease, send: Send) -> None:
        super().__init__(server, request, lease)
        self._send = send
        self.media_type: str | None = None  # once the answer has begun

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body."""
        return pieces(self.request, self.server.settings.body_timeout)

    async def begin(self, media_type: str) -> None:
        """Begin the answer."""
        self.media_type = media_type
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
        await self._put({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, content: Any, event: str = "vector") -> None:
        """A line, or an event."""
        text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        body = text + b"\n"
        if self.media_type == EVENTS:
            body = b"event: " + event.encode() + b"\ndata: " + text + b"\n\n"
        await self._put({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """The answer is whole."""
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, response: Response) -> None:
        """An answer in one."""
        await response(self.request.scope, self.request.receive, self._send)

    async def fail(self, error: RequestError) -> None:
        """An error, as the whole answer or as its last line."""
        if self.media_type is None:
            await self.answer(error.response("openai"))
        else:
            await self.write(error.body("openai"), "error")
            await self.end()

    async def _put(self, message: dict[str, Any]) -> None:
        """Send a part; a client that takes nothing for long is gone."""
        try:
            await asyncio.wait_for(self._send(message), self.server.settings.body_timeout)
        except asyncio.TimeoutError:
            raise ClientDisconnect from None


StreamHandler = Callable[[StreamCall], Awaitable[None]]


class Streamed(Response):
    """The answer of a route whose handler reads and writes as it goes."""

    def __init__(self, server: Server, request: Request, route: str, handler: StreamHandler) -> None:
        super().__init__()
        self._server, self._request, self._route, self._handler = server, request, route, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, request, route = self._server, self._request, self._route
        began = time.perf_counter()
        error: RequestError | None = None
        status = 200
        with server.budget.lease() as lease:
            call = StreamCall(server, request, lease, send)
            try:
                server.check_host(request.headers.get("host", ""))
                with server.slot():
                    call.owner = server.keys.owner(request.headers.get("authorization"))
                    call.client = server.client(call.owner, request)
                    with server.upload():
                        await unless_gone(request, self._work(call), None)
            except ClientDisconnect:
                status = CLIENT_GONE
            except Exception as caught:
                error = as_request_error(caught)
                if error is not caught and error.kind == "backend":
                    log_failure(route, caught)
                status = error.status("openai")
                with contextlib.suppress(Exception):
                    await call.fail(error)
        report(call, route, status, error, began)

    async def _work(self, call: StreamCall) -> None:
        await self._handler(call)


def stream_endpoint(
    server: Server, route: str, handler: StreamHandler
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The function of such a route."""

    async def answer(request: Request) -> Response:
        return Streamed(server, request, route, handler)

    return answer
