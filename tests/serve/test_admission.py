"""Which requests are taken in: by tokens and texts, whoever they belong to, and when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from thalweg.serve.admission import Admission, Ticket
from thalweg.serve.errors import RequestError

RATE = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(tokens: int = 1000, texts: int = 100, wait: float = 0.05, clock: Clock | None = None) -> Admission:
    return Admission(tokens, texts, wait, lambda: RATE, clock or Clock())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def enters(admission: Admission, client: str, tokens: int, texts: int = 1) -> Ticket | float:
    """The ticket, or the seconds after which to come again."""
    try:
        return await admission.enter(client, tokens, texts)
    except RequestError as error:
        return error.retry_after or 0


def test_what_fits_is_taken_in_and_given_back() -> None:
    async def work() -> None:
        admission = make()
        tickets = [await admission.enter("a", 100, 1) for _ in range(10)]
        assert (admission.tokens, admission.texts) == (1000, 10)
        for ticket in tickets:
            admission.leave(ticket)
            admission.leave(ticket)
        assert (admission.tokens, admission.texts) == (0, 0)

    run(work())


@pytest.mark.parametrize("texts", [1, 50])
def test_one_rule_for_one_and_for_many(texts: int) -> None:
    """The same tokens, in one text or in fifty."""

    async def work() -> None:
        admission = make(tokens=1000, texts=1000)
        await admission.enter("a", 1000, 1)
        found = await enters(admission, "a", 1100, texts)
        assert found == pytest.approx(1.0)

    run(work())


def test_one_text_of_any_length_is_taken_in_alone() -> None:
    async def work() -> None:
        admission = make()
        ticket = await admission.enter("a", 10**9, 1)
        assert isinstance(await enters(admission, "a", 1000), float)
        admission.leave(ticket)
        assert isinstance(await enters(admission, "a", 1000), Ticket)

    run(work())


def test_a_backlog_holds_up_nobody_else() -> None:
    """One client fills the queue; another, and then a third, are taken in at once, up to twice the bound."""

    async def work() -> None:
        admission = make()
        await admission.enter("hog", 1000, 1)
        assert isinstance(await enters(admission, "hog", 200), float)
        assert isinstance(await enters(admission, "b", 300), Ticket)
        assert isinstance(await enters(admission, "c", 300), Ticket)
        assert isinstance(await enters(admission, "d", 500), float)
        assert isinstance(await enters(admission, "e", 100), Ticket)

    run(work())


def test_texts_are_bounded() -> None:
    async def work() -> None:
        admission = make(texts=10)
        await admission.enter("a", 1, 10)
        assert isinstance(await enters(admission, "a", 1, 1), float)
        assert isinstance(await enters(admission, "b", 1, 10), Ticket)
        assert isinstance(await enters(admission, "c", 1, 1), float)

    run(work())


def test_waiting_within_the_bound() -> None:
    async def work() -> None:
        admission = make(wait=5)
        ticket = await admission.enter("a", 900, 1)
        waiting = asyncio.ensure_future(enters(admission, "a", 900))
        await asyncio.sleep(0)
        assert admission.waiting == 1
        admission.leave(ticket)
        assert isinstance(await waiting, Ticket)
        assert admission.tokens == 900

    run(work())


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def work() -> None:
        admission = make(wait=5)
        first = await admission.enter("a", 900, 1)
        waiting = asyncio.ensure_future(admission.enter("a", 900, 1))
        await asyncio.sleep(0)
        admission.leave(first)  # it is taken in, and its client goes before it hears of that
        waiting.cancel()
        await asyncio.wait({waiting})
        assert (admission.tokens, admission.waiting) == (0, 0)

    run(work())


def test_one_that_does_not_fit_holds_up_no_other_client() -> None:
    async def work() -> None:
        admission = make(wait=5)
        first = await admission.enter("a", 900, 1)
        second = await admission.enter("b", 800, 1)
        large = asyncio.ensure_future(enters(admission, "a", 900))
        small = asyncio.ensure_future(enters(admission, "b", 150))
        await asyncio.sleep(0)
        assert admission.waiting == 2
        admission.leave(second)
        assert isinstance(await small, Ticket)
        assert not large.done()
        admission.leave(first)
        assert isinstance(await large, Ticket)

    run(work())


def test_what_is_run_counts_no_longer() -> None:
    async def work() -> None:
        admission = make()
        done = 0
        ticket = await admission.enter("a", 1000, 1)
        admission.set_tokens(ticket, 2000, lambda: done)
        assert admission.tokens == 2000
        done = 1950
        assert admission.tokens == 50
        assert isinstance(await enters(admission, "a", 900), Ticket)
        admission.leave(ticket)
        assert admission.tokens == 900

    run(work())


def test_who_comes_back_as_told_is_taken_in() -> None:
    """Two hundred requests at once, on a queue for ten, worked on at the measured rate: whoever waits as Retry-After
    says is taken in at once, though others who are told nothing come all the time."""

    async def work() -> None:
        clock = Clock()
        admission = make(wait=0.001, clock=clock)
        queue: list[Ticket] = []
        left = 0.0
        due: list[tuple[float, str]] = [(clock.now, f"client {n}") for n in range(200)]
        tries = refused_again = 0
        told: set[str] = set()
        while due and clock.now < 300:
            due.sort()
            while due and due[0][0] <= clock.now:
                _, client = due.pop(0)
                tries += client in told
                found = await enters(admission, client, 100)
                if isinstance(found, Ticket):
                    queue.append(found)
                else:
                    refused_again += client in told
                    told.add(client)
                    due.append((clock.now + found, client))
            greedy = await enters(admission, "greedy", 100)
            if isinstance(greedy, Ticket):
                queue.append(greedy)
            clock.now += 0.05
            left += RATE * 0.05
            while queue and left >= 100:
                admission.leave(queue.pop(0))
                left -= 100
        assert not due
        assert tries > 100
        assert refused_again <= 0.05 * tries

    run(work())


def test_patience_has_no_bound() -> None:
    async def work() -> None:
        admission = make(wait=0.01)
        ticket = await admission.enter("a", 10**6, 1)
        waiting = asyncio.ensure_future(admission.enter("a", 900, 1, patient=True))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        admission.leave(ticket)
        await waiting

    run(work())
