"""What every request goes through: keys, limits, errors in the interface's own shape, a line in the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from thalweg.serve.bodies import Lease, parse, read_body
from thalweg.serve.errors import Interface, RequestError, as_request_error
from thalweg.serve.logs import log_event, log_failure
from thalweg.serve.model import ServedModel, Wish
from thalweg.serve.protocol import GONE

if TYPE_CHECKING:
    from thalweg.serve.server import Server

T = TypeVar("T")

CLIENT_GONE = 499
"""The status in the log where the client has gone."""

PRIORITIES = {"normal": 0, "low": -1}
"""What a client may say in the header X-Priority: texts of low priority begin when no others wait."""

JSON = "application/json"

PIECE_BYTES = 1 << 16
"""Bytes of an answer that are sent at a time."""

BYTES_OF_NUMBER = {"float": 16, "base64": 10}
"""Bytes of a number of a vector, and of what is written of it."""


class Call:
    """One request.

    Attributes:
        owner: the name of the key; client: among whom the model is shared.
        tokens, texts: what was embedded, for log and metrics.
    """

    def __init__(self, server: Server, request: Request, lease: Lease) -> None:
        self.server, self.request, self.lease = server, request, lease
        self.owner = ""
        self.client: str = ""
        self.tokens = self.texts = 0

    async def body(self) -> bytes:
        """The body, held whole."""
        settings = self.server.settings
        return await read_body(self.request, settings.payload_limit, settings.body_timeout, self.lease)

    async def json(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The body as JSON of a kind."""
        return await parse(await self.body(), decoder)

    def model(self, name: str | None) -> ServedModel:
        """The model of a name, the first where there is none."""
        return self.server.model(name)

    def expect(self, n_vectors: int, model: ServedModel, dimensions: int | None, encoding: str = "float") -> None:
        """Count the answer among the bytes that are held.

        Raises:
            RequestError: 429, others fill them.
        """
        self.lease.take(n_vectors * (dimensions or model.embedder.dimension) * BYTES_OF_NUMBER[encoding])

    def is_user(self, user: str | None) -> None:
        """The request is for a user of the client's own. Several keys are shared among, and one key's users."""
        if user and len(self.server.keys) < 2:
            self.client = f"user {user[:200]}"

    def wish(
        self,
        model: ServedModel,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Wish:
        """What is asked for; with the errors of `Embedder.encode`."""
        model.check_dimensions(dimensions)
        return Wish(model.prompt(prompt, prompt_name), normalize, dimensions, self.client, self.owner, self._priority())

    def _priority(self) -> int:
        given = self.request.headers.get("x-priority", "normal").lower()
        if given not in PRIORITIES:
            raise RequestError("invalid", f"X-Priority must be {' or '.join(PRIORITIES)}, not {given[:40]!r}")
        return PRIORITIES[given]

    def timeout(self) -> float:
        """Seconds that the request may take: the server's, or what the client says in X-Request-Timeout, if less."""
        most, given = self.server.settings.request_timeout, self.request.headers.get("x-request-timeout")
        if given is None:
            return most
        try:
            seconds = float(given)
        except ValueError:
            seconds = 0
        if not seconds > 0:
            raise RequestError("invalid", f"X-Request-Timeout must be a number of seconds, not {given[:40]!r}")
        return min(most, seconds)

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Do what takes the processor for a while; the body has been read."""
        return await self.unless_gone(_in_thread(work))

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what takes long, while the client is there and in time.

        Raises:
            RequestError: 504.
            ClientDisconnect: the client has gone, and so is the work.
        """
        try:
            seconds = self.timeout()
        except BaseException:
            work.close()
            raise
        try:
            return await unless_gone(self.request, work, seconds)
        except asyncio.TimeoutError:
            raise RequestError("timeout", f"it took longer than {seconds:g} s") from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Do what takes long, while the client is there.

    Raises:
        asyncio.TimeoutError: it took too long.
        ClientDisconnect: the client has gone, and so is the work.
    """
    task = asyncio.ensure_future(work)
    gone = request.scope.get("state", {}).get(GONE)
    try:
        waiting = {task} if gone is None else {task, gone}
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect if gone is not None and gone.done() else asyncio.TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Numpy arrays are written from their memory."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, media_type=JSON)


Handler = Callable[[Call], Awaitable[Response]]


class PlainRoute(APIRoute):
    """A route whose function takes the request as it is; FastAPI only describes it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class Answered(Response):
    """The answer of a route, made and sent while the request counts as one in progress.

    Args:
        public: needs no key, is not counted, and is answered while the server is full.
    """

    def __init__(
        self, server: Server, request: Request, interface: Interface, route: str, handler: Handler, *, public: bool
    ) -> None:
        super().__init__()
        self._server, self._request, self._interface = server, request, interface
        self._route, self._handler, self._public = route, handler, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, request, route = self._server, self._request, self._route
        began = time.perf_counter()
        error: RequestError | None = None
        status = 200
        with server.budget.lease() as lease:
            call = Call(server, request, lease)
            try:
                if self._public:
                    await send_whole(await self._handler(call), send, server.settings.body_timeout)
                    return
                server.check_host(request.headers.get("host", ""))
                with server.slot():
                    call.owner = server.keys.owner(request.headers.get("authorization"))
                    call.client = server.client(call.owner, request)
                    response = await self._handler(call)
                    status = response.status_code
                    await send_whole(response, send, server.settings.body_timeout)
            except ClientDisconnect:
                status = CLIENT_GONE
            except Exception as caught:
                error = as_request_error(caught)
                if error is not caught and error.kind == "backend":
                    log_failure(route, caught)
                response = error.response(self._interface)
                status = response.status_code
                await send_whole(response, send, server.settings.body_timeout)
        report(call, route, status, error, began)


async def send_whole(response: Response, send: Send, timeout: float) -> None:
    """Send an answer piece by piece, so that what waits for a slow client is held here and nowhere else.

    Raises:
        ClientDisconnect: the client took nothing for `timeout` seconds.
    """
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    body = memoryview(response.body)
    for start in range(0, max(1, len(body)), PIECE_BYTES):
        part = bytes(body[start : start + PIECE_BYTES])
        message = {"type": "http.response.body", "body": part, "more_body": start + PIECE_BYTES < len(body)}
        if not start:
            await send(message)
            continue
        try:
            await asyncio.wait_for(send(message), timeout)
        except asyncio.TimeoutError:
            raise ClientDisconnect from None


def endpoint(
    server: Server, interface: Interface, route: str, handler: Handler, *, public: bool = False
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The function of a route; see `Answered`."""

    async def answer(request: Request) -> Response:
        return Answered(server, request, interface, route, handler, public=public)

    return answer


def report(call: Call, route: str, status: int, error: RequestError | None, began: float) -> None:
    """Count and log a request that is answered."""
    seconds = time.perf_counter() - began
    kind = error.kind if error else "gone" if status == CLIENT_GONE else None
    call.server.metrics.request(route, "single" if call.texts <= 1 else "batch", status, kind, seconds, call.tokens)
    log_event(
        "request",
        route=route,
        status=status,
        ms=round(1000 * seconds, 2),
        tokens=call.tokens,
        texts=call.texts,
        key=call.owner,
        error=kind,
    )
