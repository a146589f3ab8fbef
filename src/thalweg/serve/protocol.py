"""uvicorn's HTTP/1.1, with bounds on the headers of a request (their time, their bytes) and on a body that was refused,
and with word of clients that have gone."""

from __future__ import annotations

import asyncio
import select
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GONE = "thalweg.gone"
"""The key in the state of a request of a future that is done when its client has gone."""

WATCH_SECONDS = 0.25
"""Seconds between two looks for the end of a connection that is not read."""

MAX_HEADER_BYTES = 1 << 16
"""Bytes of the first line and the headers of a request."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when the headers of a request do not arrive in time, or never end.

    Attributes:
        header_timeout: seconds; and for as long the rest of a body is read that was refused.
    """

    header_timeout = 10.0

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._header_timer: asyncio.TimerHandle | None = None
        self._body_comes = False  # or the headers of a request
        self._end_timer: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = None  # of the request whose headers are under way

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gone: asyncio.Future[None] = self.loop.create_future()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_headers()
        if not self._gone.done():
            self._gone.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._header_bytes is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.send_400_response(f"The headers of a request may have {MAX_HEADER_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._body_comes = True
        self.scope["state"][GONE] = self._gone
        self._await_headers()

    def on_message_complete(self) -> None:
        self._body_comes = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._body_comes:  # it was refused; whoever sends it reads the answer at its end
            self.loop.call_later(self.header_timeout, self._stop_reading, self.cycle)

    def _stop_reading(self, cycle: object) -> None:
        if self.cycle is cycle and self._body_comes and not self.transport.is_closing():
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._end_headers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.flow.read_paused:
            self._watch_for_end()

    def _watch_for_end(self) -> None:
        """Where reading is paused, the end of the connection is behind what was not read: the system knows of it."""
        if self._end_timer is None and hasattr(select, "POLLRDHUP"):
            self._end_timer = self.loop.call_later(WATCH_SECONDS, self._look_for_end)

    def _look_for_end(self) -> None:
        self._end_timer = None
        sock = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or sock is None or not self.flow.read_paused:
            return
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._watch_for_end()

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
