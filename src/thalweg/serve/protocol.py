"""uvicorn's HTTP/1.1, with bounds on the headers of a request: their time and their bytes."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 1 << 16
"""Bytes of the first line and the headers of a request."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when the headers of a request do not arrive in time, or never end.

    Attributes:
        header_timeout: seconds.
    """

    header_timeout = 10.0

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = None  # of the request whose headers are under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._header_bytes is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.send_400_response(f"The headers of a request may have {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        self._end_headers()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._end_headers()
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self.header_timeout, self._too_late)

    def _end_headers(self) -> None:
        self._header_bytes = None
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_headers()  # of a pipelined request, while another one is answered
        elif not self.transport.is_closing():
            self.transport.close()


def bounded(header_timeout: float) -> type[BoundedProtocol]:
    """The protocol with such a bound."""
    return type("Bounded", (BoundedProtocol,), {"header_timeout": header_timeout})
