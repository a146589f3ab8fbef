"""Bodies of requests, read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from thalweg.serve.errors import RequestError

T = TypeVar("T")

LARGE = 1 << 18
"""Bytes of a body from which on it is parsed beside the event loop."""

_DIGITS = 15  # of a Content-Length


class BodyBudget:
    """The bytes of all bodies that are held.

    Args:
        most: of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Bytes of one request, given back at its end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.bytes

    def take(self, n: int) -> None:
        """Raises RequestError where they do not fit."""
        if self.held + n > self._most:
            raise RequestError(
                "overloaded",
                f"other requests fill the {self._most:,} bytes that this server holds of bodies and answers; "
                "try again soon",
                retry_after=1,
            )
        self.held += n


class Lease:
    """What one request has of a `BodyBudget`."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def take(self, n: int) -> None:
        """See `BodyBudget`."""
        self._budget.take(n)
        self.bytes += n

    def give_back(self, n: int) -> None:
        """These are held no longer."""
        self._budget.held -= n
        self.bytes -= n


def content_length(request: Request) -> int | None:
    """The bytes that a body is said to have.

    Raises:
        RequestError: that is no number, or the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            "unsupported", f"bodies with Content-Encoding {encoding[:40]!r} are not taken; send it as it is"
        )
    stated = request.headers.get("content-length")
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit() and len(stated) <= _DIGITS):
        raise RequestError("malformed", "Content-Length is no number of bytes")
    return int(stated)


def too_large(limit: int) -> RequestError:
    """413."""
    return RequestError(
        "too_large",
        f"the body has more than the {limit:,} bytes that this server takes at once; send long texts as text/plain to "
        "/v1/thalweg/embed, which has no limit",
    )


async def read_body(request: Request, limit: int, timeout: float, lease: Lease) -> bytes:
    """The whole body.

    Raises:
        RequestError: it is too large, compressed, or takes too long to arrive.
        ClientDisconnect: the client has gone.
    """
    stated = content_length(request)
    if stated is not None and stated > limit:
        raise too_large(limit)
    try:
        return await asyncio.wait_for(_read(request, limit, lease), timeout)
    except (TimeoutError, asyncio.TimeoutError):
        raise RequestError("timeout", f"the body has not arrived within {timeout:g} s", status=408) from None


async def _read(request: Request, limit: int, lease: Lease) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        lease.take(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A body as JSON of a kind.

    Raises:
        RequestError: it is no JSON, or of another kind.
    """
    if len(body) < LARGE:
        return _parse(body, decoder)
    return await asyncio.get_running_loop().run_in_executor(None, _parse, body, decoder)


def _parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        raise RequestError("invalid", message, param=_field(message)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise RequestError("malformed", f"the body is no JSON: {reason}") from None
    except RecursionError:
        raise RequestError("malformed", "the body is JSON that is nested too deeply") from None


def _field(message: str) -> str | None:
    """The field that a message of msgspec names: "… - at `$.input[0]`"."""
    _, found, path = message.rpartition("`$.")
    return path.split("`")[0].split("[")[0].split(".")[0] or None if found else None
