"""The client against a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from thalweg.errors import EndpointError, InvalidInputError
from thalweg.synthesis.client import REQUEST_FAILED, ChatClient, Reply, Usage
from thalweg.synthesis.client import Endpoint as Address
from thalweg.synthesis.pacing import Pace

from .server import Answer, Behaviour, Endpoint, Request, endpoint


def ask(server: Endpoint, *prompts: str, pace: Pace | None = None, **options: Any) -> list[Reply]:
    """Replies to prompts that are asked at the same time."""
    address = Address(server.url, "model", **{"timeout": 5.0, "first_pause": 0.01, **options})

    async def run() -> list[Reply]:
        async with ChatClient(address, pace) as client:
            asked = [asyncio.create_task(client.ask(prompt, 0.8)) for prompt in prompts]
            try:
                return list(await asyncio.gather(*asked))
            finally:
                await asyncio.wait(asked)  # a client that closes while others still connect leaves sockets open

    return asyncio.run(run())


def once(trouble: Answer, *, times: int = 1) -> Behaviour:
    """Trouble for the first times that a prompt comes, then "fine"."""
    return lambda request: trouble if request.seen < times else Answer("fine")


def test_a_request_says_what_the_protocol_wants() -> None:
    with endpoint(lambda request: Answer("fine")) as server:
        (reply,) = ask(server, "How deep is the river?", key="secret", max_tokens=7)
        assert reply == Reply("fine", Usage(5, 1, counted=True))
        (request,) = server.requests
        assert request.headers["Authorization"] == "Bearer secret"
        assert request.body == {
            "model": "model",
            "messages": [{"role": "user", "content": "How deep is the river?"}],
            "temperature": 0.8,
            "top_p": 0.9,
            "max_tokens": 7,
        }
        ask(server, "again", body={"max_tokens": None, "max_completion_tokens": 9, "temperature": 0.1})
        body = server.requests[1].body
        assert ("max_tokens" not in body, body["max_completion_tokens"], body["temperature"]) == (True, 9, 0.1)
        assert "Authorization" not in server.requests[1].headers


def test_the_key_is_in_no_representation() -> None:
    assert "secret" not in repr(Address("http://x/v1", "model", key="secret"))


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=500, body="out of order"),
        Answer(status=503, body='{"error": {"message": "busy"}}'),
        Answer(status=408),
        Answer(status=429, body="{}"),
        Answer(status=429, headers={"Retry-After": "soon"}, body="{}"),
        Answer(drop=True),
        Answer(body="<html>a proxy</html>"),
        Answer(wait=2.0),
        Answer(headers={"Content-Length": "9999"}),
    ],
    ids=lambda trouble: str(trouble)[7:60],
)
def test_what_may_pass_is_tried_again(trouble: Answer) -> None:
    with endpoint(once(trouble, times=2)) as server:
        (reply,) = ask(server, "a", timeout=0.3)
        assert (reply.text, reply.problem) == ("fine", None)
        assert len(server.requests) == 3


def test_pauses_grow_and_leave_something_to_chance() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run(server: Endpoint) -> Reply:
        address = Address(server.url, "model", retries=9, first_pause=1.0)
        async with ChatClient(address, sleep=sleep) as client:
            return await client.ask("a", 1.0)

    with endpoint(once(Answer(status=500), times=9)) as server:
        assert asyncio.run(run(server)).text == "fine"
    for number, pause in enumerate(pauses):
        assert min(2.0**number, 60) / 2 <= pause <= min(2.0**number, 60)
    assert len({pause / min(2.0**number, 60) for number, pause in enumerate(pauses)}) == 9


@pytest.mark.parametrize(
    "after", [lambda: "0.4", lambda: format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)]
)
def test_retry_after_holds_all_requests(after: Callable[[], str]) -> None:
    def behave(request: Request) -> Answer:
        if request.prompt == "limited" and not request.seen:
            return Answer(status=429, headers={"Retry-After": after()}, body="{}")
        return Answer("fine", wait=0.1 if request.prompt == "slow" else 0.0)

    async def run(server: Endpoint) -> None:
        async with ChatClient(Address(server.url, "model", first_pause=0.01)) as client:

            async def later() -> None:
                await asyncio.sleep(0.2)
                await client.ask("later", 1.0)

            await asyncio.gather(client.ask("limited", 1.0), later())

    with endpoint(behave) as server:
        asyncio.run(run(server))
        first, *others = server.requests
        assert first.prompt == "limited"
        assert {request.prompt for request in others} == {"limited", "later"}
        assert min(request.time for request in others) - first.time >= 0.35


def test_a_request_that_always_fails_is_given_up_while_others_go_on() -> None:
    with endpoint(lambda request: Answer(status=500) if request.prompt == "bad" else Answer("fine")) as server:
        bad, good = ask(server, "bad", "good", retries=3)
        assert good.text == "fine"
        assert bad.problem is not None
        assert bad.problem[0] == REQUEST_FAILED
        assert "HTTP 500" in bad.problem[1]
        assert sum(request.prompt == "bad" for request in server.requests) == 4


def test_a_request_that_the_endpoint_calls_wrong_is_not_repeated() -> None:
    body = json.dumps({"error": {"message": "flagged by\nthe filter"}})
    with endpoint(lambda request: Answer(status=400, body=body)) as server:
        (reply,) = ask(server, "a")
        assert reply.problem == (REQUEST_FAILED, "HTTP 400: flagged by the filter (tries: 1)")
        assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", [Answer(status=500), Answer(drop=True), Answer(status=400, body="no")])
def test_too_many_failures_in_a_row_are_an_error(trouble: Answer) -> None:
    with (
        endpoint(lambda request: trouble) as server,
        pytest.raises(EndpointError, match=r"does not work: 12 tries in a row failed.*the same command goes on"),
    ):
        ask(server, *map(str, range(20)), max_failures=12, retries=5)
    assert len(server.requests) >= 8  # on a busy machine a connection may be reset before the request is read


def test_a_success_between_failures_starts_the_count_anew() -> None:
    with endpoint(once(Answer(status=500), times=2)) as server:
        replies = [ask(server, prompt, max_failures=3)[0] for prompt in "abcdef"]
        assert all(reply.text == "fine" for reply in replies)


def test_an_endpoint_that_is_not_there_is_an_error() -> None:
    with endpoint() as server:
        pass
    with pytest.raises(EndpointError, match=r"6 tries in a row failed, the last one with ConnectError"):
        ask(server, "a", max_failures=6)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, '{"error": "bad key"}', r"HTTP 401: bad key.*the environment variable MY_KEY, which is not set"),
        (403, "", r"HTTP 403: no message"),
        (404, '{"error": {"message": "no model"}}', r"no model.*check --base-url and --model 'model'"),
        (429, '{"error": {"code": "insufficient_quota", "message": "pay"}}', r"HTTP 429: pay"),
    ],
)
def test_what_no_other_try_can_change_ends_at_once(status: int, body: str, message: str) -> None:
    with (
        endpoint(lambda request: Answer(status=status, body=body)) as server,
        pytest.raises(EndpointError, match=message),
    ):
        ask(server, "a", key_name="MY_KEY")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(body='{"choices": []}'), "no choices"),
        (Answer(body="[]"), "no choices"),
        (Answer(body='{"choices": [7]}'), "no choices"),
        (Answer(body='{"choices": [{}]}'), "no choices"),
        (Answer("half of a te", finish="length"), "cut off"),
        (Answer("", finish="content_filter"), "refusal"),
        (Answer(None, refusal="I will not."), "refusal"),
    ],
)
def test_a_reply_without_use_has_a_reason(answer: Answer, reason: str) -> None:
    with endpoint(lambda request: answer) as server:
        (reply,) = ask(server, "a")
        assert reply.problem is not None
        assert reply.problem[0] == reason
        assert len(server.requests) == 1


def test_a_reply_without_text_is_empty() -> None:
    with endpoint(lambda request: Answer(body='{"choices": [{"message": {"content": null}}]}')) as server:
        assert ask(server, "a")[0].text == ""


def test_tokens_are_estimated_where_the_endpoint_does_not_count() -> None:
    with endpoint(lambda request: Answer("x" * 80, usage=False)) as server:
        assert ask(server, "y" * 40)[0].usage == Usage(10, 20, counted=False)


def test_requests_are_paced() -> None:
    with endpoint(lambda request: Answer("fine")) as server:
        ask(server, *map(str, range(6)), pace=Pace(requests=600))
        times = sorted(request.time for request in server.requests)
        assert times[-1] - times[0] > 0.45, "a tenth of a second between any two"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now = max(self.now, self.now + seconds)
        await asyncio.sleep(0)


def test_a_pace_keeps_both_bounds() -> None:
    async def run(pace: Pace, clock: Clock, expected: int, actual: int) -> float:
        for _ in range(61):
            await pace.wait(expected)
            pace.settle(expected, actual)
        return clock.now

    for requests, tokens, expected, actual, seconds in [
        (60, None, 100, 100, 60),  # a request a second
        (None, 6000, 100, 100, 60),  # a hundred tokens a second
        (60, 6000, 200, 200, 120),
        (60, 6000, 50, 50, 60),
        (None, 6000, 100, 50, 30),  # less than expected
        (None, 6000, 100, 200, 120),  # more
        (None, None, 100, 100, 0),
    ]:
        clock = Clock()
        pace = Pace(requests, tokens, clock=clock, sleep=clock.sleep)
        assert asyncio.run(run(pace, clock, expected, actual)) == pytest.approx(seconds, rel=0.02)


def test_waiting_is_no_busy_loop() -> None:
    began = time.process_time()
    with endpoint(lambda request: Answer("fine")) as server:
        ask(server, "a", "b", "c", pace=Pace(requests=200))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000/v1", "ftp://host/v1", "", "http://", "http://host:port/v1", "http://host:99999/v1"),
        *("http://host:-5/v1", "http://xn--/v1", "http://[::1/v1", "http://\ud800/v1", "http://host\n/v1"),
    ],
)
def test_a_wrong_url_is_quoted(url: str) -> None:
    with pytest.raises(InvalidInputError, match="is no base URL"):
        Address(url, "model")


@pytest.mark.parametrize(
    "options",
    [
        {"body": {"a": float("nan")}},
        {"body": {"a": [float("inf")]}},
        {"body": {"a": "\ud800"}},
        {"model": "\ud800"},
    ],
)
def test_what_json_cannot_hold_is_refused_before_anything_is_asked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="cannot be sent as JSON"):
        Address("http://host/v1", **{"model": "m", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": float("nan")}, "timeout has to be above 0 seconds, not nan"),
        ({"timeout": 0.0}, "timeout has to be above 0 seconds, not 0"),
        ({"top_p": float("nan")}, "top_p has to be a number from 0 to 1, not nan"),
        ({"top_p": 1.5}, "top_p has to be a number from 0 to 1, not 1.5"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Address("http://host/v1", "m", **options)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_pace_of_nothing_is_refused(value: float) -> None:
    for options in ({"requests": value}, {"tokens": value}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(options))} a minute have to be above 0"):
            Pace(**options)


def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://host:1")
    with pytest.raises(InvalidInputError, match="the proxy that the environment names cannot be used"):
        ChatClient(Address("http://host/v1", "m"))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body="[" * 100_000),
        Answer(body='{"choices": ' + "[" * 100_000),
        Answer(status=400, body='{"error": {"message": ' + "[" * 100_000),
        Answer(body="{}", headers={"Content-Type": "application/json; charset=rot13"}),
        Answer(body="{}", headers={"Content-Type": "application/json; charset=idna"}),
        Answer(body="{}", headers={"Content-Encoding": "gzip"}),
        Answer(status=429, body="{}", headers={"Retry-After": "nan"}),
        Answer(status=429, body="{}", headers={"Retry-After": "inf"}),
        Answer(status=429, body="{}", headers={"Retry-After": "Wed, 21 Oct 99999 07:28:00 GMT"}),
        Answer(status=301, body="", headers={"Location": "http://xn--/"}),
    ],
)
def test_whatever_a_server_sends_it_is_a_reply_with_a_problem(answer: Answer) -> None:
    with endpoint(lambda request: answer) as server:
        (reply,) = ask(server, "a", retries=1)
    assert reply.problem is not None
    assert reply.problem[0] in (REQUEST_FAILED, "no choices")


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidInputError, match="the key in OPENAI_API_KEY") as error:
        Address("http://host/v1", "model", key=key)
    assert not key or key not in str(error.value)
