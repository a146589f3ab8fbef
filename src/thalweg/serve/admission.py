"""Which requests are taken in, and which wait or are sent away: one rule for one text and for many.

A request waits for room within a bound; where the queue would take longer than that, it gets 429 and the seconds after
which there is room, by the queued tokens and the measured rate. Whoever comes back then is taken in before others:
the room is booked.

- A client that has nothing in the queue does not wait for the backlog of others, up to twice the bound.
- A client may fill its share of the bound, and more while others leave room.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from thalweg.serve.errors import RequestError

KEPT = 10.0
"""Seconds for which room stays booked."""

RETURN_SECONDS = 2.0
"""Seconds for which whoever comes back as told waits at least."""

MOST_SECONDS = 600.0
"""Seconds ahead for which room is booked at most; further requests are told the time after which that is used."""

MOST_OF_CLIENT = 64
"""Requests of one client for which room is booked; others of it are told the time of the last of these."""


@dataclass(eq=False)
class Ticket:
    """A request that has been taken in.

    client: whose it is; tokens: estimated or known; texts: how many; taken: tokens of it that have been run, where
    that is known before its end.
    """

    client: Hashable
    tokens: int
    texts: int
    taken: Callable[[], int] | None = None

    @property
    def left(self) -> int:
        """Tokens that wait."""
        return self.tokens if self.taken is None else max(0, self.tokens - self.taken())


@dataclass(eq=False)
class _Waiter:
    ticket: Ticket
    favoured: bool
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Booking(NamedTuple):
    client: Hashable
    tokens: int
    due: float


class Admission:
    """The queue of one model, in one event loop.

    Args:
        max_tokens, max_texts: what may be queued.
        max_wait: seconds for which a request may wait for room.
        rate: tokens a second at present.
        clock: in seconds.
    """

    def __init__(
        self,
        max_tokens: int,
        max_texts: int,
        max_wait: float,
        rate: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_tokens, self._max_texts, self._max_wait = max_tokens, max_texts, max_wait
        self._rate = rate
        self._clock = clock
        self._tickets: dict[Ticket, None] = {}
        self._counted: Counter[Hashable] = Counter()  # tokens of tickets without `taken`, by client
        self._texts: Counter[Hashable] = Counter()
        self._watched: dict[Ticket, None] = {}  # tickets with `taken`
        self._n_texts = self._n_tokens = 0
        self._waiters: deque[_Waiter] = deque()
        self._bookings: deque[_Booking] = deque()

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._n_tokens + sum(ticket.left for ticket in self._watched)

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return self._n_texts

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiters)

    async def enter(self, client: Hashable, tokens: int, texts: int, *, patient: bool = False) -> Ticket:
        """Take in a request, maybe after a while. Whoever gets the ticket gives it to `leave`.

        patient: wait for as long as it takes.

        Raises:
            RequestError: 429, with the seconds after which there is room.
        """
        ticket = Ticket(client, tokens, texts)
        favoured = self._came_back(client)
        is_first = not any(waiter.ticket.client == client for waiter in self._waiters)
        if (is_first or favoured) and self._fits(ticket, favoured=favoured):
            self._add(ticket)
            return ticket
        if not favoured and not patient and self.tokens + tokens - self._max_tokens > self._max_wait * self._rate():
            raise self._refused(ticket)
        waiter = _Waiter(ticket, favoured)
        if favoured:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            await asyncio.wait({waiter.admitted}, timeout=None if patient else self._patience(favoured))
        except BaseException:
            self._give_up(waiter)
            raise
        if waiter.admitted.done():
            return ticket
        self._give_up(waiter)
        raise self._refused(ticket)

    def _patience(self, favoured: bool) -> float:
        """Seconds for which a request waits. Who comes back as told may come with many others, as seconds are whole."""
        return max(self._max_wait, RETURN_SECONDS) if favoured else self._max_wait

    def leave(self, ticket: Ticket) -> None:
        """The request is done, or its client has gone."""
        if ticket not in self._tickets:
            return
        del self._tickets[ticket]
        self._n_texts -= ticket.texts
        self._texts[ticket.client] -= ticket.texts
        if not self._texts[ticket.client]:
            del self._texts[ticket.client]
        if ticket in self._watched:
            del self._watched[ticket]
        else:
            self._count(ticket, -ticket.tokens)
        self._admit()

    def set_tokens(self, ticket: Ticket, tokens: int, taken: Callable[[], int] | None = None) -> None:
        """More is known of a ticket: its tokens, and how many of them have been run."""
        if ticket not in self._tickets:
            return
        if ticket not in self._watched:
            self._count(ticket, -ticket.tokens)
        ticket.tokens, ticket.taken = tokens, taken or ticket.taken
        if ticket.taken is None:
            self._count(ticket, tokens)
        else:
            self._watched[ticket] = None

    @contextmanager
    def held(self, ticket: Ticket) -> Iterator[Ticket]:
        """The ticket, given back at the end."""
        try:
            yield ticket
        finally:
            self.leave(ticket)

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket] = None
        self._n_texts += ticket.texts
        self._texts[ticket.client] += ticket.texts
        self._count(ticket, ticket.tokens)

    def _count(self, ticket: Ticket, tokens: int) -> None:
        self._n_tokens += tokens
        self._counted[ticket.client] += tokens
        if not self._counted[ticket.client]:
            del self._counted[ticket.client]

    def _fits(self, ticket: Ticket, *, favoured: bool) -> bool:
        total, client = self.tokens, ticket.client
        if not self._tickets:
            return True  # alone, whatever its size
        own_texts = self._texts.get(client, 0)
        room = 2 if favoured or not own_texts else 1
        if self._n_texts + ticket.texts > room * self._max_texts:
            return False
        if favoured or not own_texts:
            others = 0 if favoured else self._booked(within=1.0)
            return total + ticket.tokens + others <= 2 * self._max_tokens
        own = self._counted.get(client, 0) + sum(each.left for each in self._watched if each.client == client)
        share = self._max_tokens // len(self._texts)
        if total + ticket.tokens + self._booked() <= self._max_tokens:
            return True
        return own + ticket.tokens <= share and total + ticket.tokens <= 2 * self._max_tokens

    def _admit(self) -> None:
        """Let in who waits and fits: those that came first, but one that does not fit holds up no other client."""
        blocked: set[Hashable] = set()
        for waiter in list(self._waiters):
            if waiter.ticket.client in blocked:
                continue
            if self._fits(waiter.ticket, favoured=waiter.favoured):
                self._waiters.remove(waiter)
                self._add(waiter.ticket)
                waiter.admitted.set_result(None)
            else:
                blocked.add(waiter.ticket.client)

    def _give_up(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.ticket in self._tickets:
            self.leave(waiter.ticket)
        self._admit()

    # -- coming back -------------------------------------------------------------------------------------------------

    def _refused(self, ticket: Ticket) -> RequestError:
        """429, and room booked for whoever comes back."""
        rate = max(self._rate(), 1.0)
        seconds = max(1.0, (self.tokens + self._booked()) / rate)
        own = [each for each in self._bookings if each.client == ticket.client]
        if len(own) >= MOST_OF_CLIENT:
            seconds = max(1.0, own[-1].due - self._clock())
        elif seconds < MOST_SECONDS:
            self._bookings.append(_Booking(ticket.client, ticket.tokens, self._clock() + seconds))
        return RequestError(
            "overloaded",
            f"{self.tokens:,} tokens are queued, and {rate:,.0f} are embedded a second; try again in {seconds:.0f} s",
            retry_after=seconds,
        )

    def _booked(self, within: float = math.inf) -> int:
        """Tokens of those who were told to come back, in so many seconds, and have not yet."""
        now = self._clock()
        self._bookings = deque(each for each in self._bookings if each.due + KEPT > now)
        return sum(each.tokens for each in self._bookings if each.due <= now + within)

    def _came_back(self, client: Hashable) -> bool:
        """Whether room is booked for a client by now; then it is booked no longer."""
        now = self._clock()
        self._booked()
        for booking in self._bookings:
            if booking.client == client and booking.due <= now + 0.5:
                self._bookings.remove(booking)
                return True
        return False
