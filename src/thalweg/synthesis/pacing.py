"""Requests and tokens a minute. Requests are spread evenly: a minute's worth never goes out at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from thalweg.errors import InvalidInputError


class Pace:
    """Says when the next request may go out. For the tasks of one event loop.

    requests, tokens: a minute, None for no bound; clock, sleep: replaced by tests.
    """

    def __init__(
        self,
        requests: float | None = None,
        tokens: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None and not value > 0:
                raise InvalidInputError(f"{name} a minute have to be above 0, not {value}")
        self._per_request = 60.0 / requests if requests else 0.0
        self._per_token = 60.0 / tokens if tokens else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next_request = self._next_token = self._held_until = clock()

    async def wait(self, tokens: int) -> None:
        """Return when a request of about so many tokens, prompt and reply, may go out; it counts from then on."""
        while True:
            now = self._clock()
            at = max(self._next_request, self._next_token, self._held_until)
            if at <= now:
                break
            await self._sleep(at - now)
        self._next_request = now + self._per_request
        self._next_token = now + tokens * self._per_token

    def settle(self, expected: int, actual: int) -> None:
        """Correct what `wait` was told by what the request took."""
        self._next_token += (actual - expected) * self._per_token

    def hold(self, seconds: float) -> None:
        """Let nothing out for so long: the endpoint asked for it."""
        self._held_until = max(self._held_until, self._clock() + seconds)
