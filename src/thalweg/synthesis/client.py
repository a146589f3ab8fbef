"""One OpenAI-compatible chat endpoint. Retries what can be retried; an endpoint that stays down ends the run."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from thalweg.errors import EndpointError, InvalidInputError, MissingExtraError
from thalweg.synthesis.pacing import Pace
from thalweg.system.words import counted

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("thalweg synth needs httpx: pip install 'thalweg[synth]'") from error

log = logging.getLogger("thalweg")

REQUEST_FAILED = "request failed"
"""A reason that says nothing about the prompt: a later run asks again."""

_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that another try may change."""

_HOPELESS = frozenset({401, 402, 403, 404, 405})
"""Statuses that every other request would get as well."""

_LONGEST_PAUSE = 60.0
_CHARACTERS_PER_TOKEN = 4
"""In English; only where an endpoint does not count tokens, and for the first requests of a paced run."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    base_url: up to `/v1`; key: None sends none; timeout: seconds for a whole reply; retries: of one request;
    max_failures: failed tries without a success between them, over all requests, that end the run; first_pause: seconds
    before the first retry, twice as long before each that follows; body: put into every request, None takes a key out.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str = "OPENAI_API_KEY"
    timeout: float = 300.0
    retries: int = 8
    max_failures: int = 100
    first_pause: float = 1.0
    top_p: float = 0.9
    max_tokens: int = 4096
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_url(self.base_url):
            raise InvalidInputError(f"{self.base_url!r} is no base URL: write one such as http://127.0.0.1:8000/v1")
        if not self.timeout > 0:
            raise InvalidInputError(f"timeout has to be above 0 seconds, not {self.timeout}")
        if not 0 <= self.top_p <= 1:
            raise InvalidInputError(f"top_p has to be a number from 0 to 1, not {self.top_p}")
        try:
            json.dumps([self.model, dict(self.body)], ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"the model's name {self.model!r} or the body {dict(self.body)!s:.80} cannot be sent as JSON: {error}"
            ) from error
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key):
            raise InvalidInputError(f"the key in {self.key_name} is empty or has characters that no header can hold")


@dataclass(frozen=True)
class Usage:
    """Tokens of a reply. counted: by the endpoint; else estimated from the characters."""

    prompt: int
    reply: int
    counted: bool


@dataclass(frozen=True)
class Reply:
    """What came back.

    text: "" where there is none; problem: why the text cannot be used, as (reason, detail), None if there is no reason.
    """

    text: str
    usage: Usage
    problem: tuple[str, str] | None = None


class _Failed(Exception):
    """A try that gave no reply. pause: the seconds that the endpoint asks to wait; final: trying again is in vain."""

    def __init__(self, what: str, *, pause: float | None = None, final: bool = False) -> None:
        super().__init__(what)
        self.pause = pause
        self.final = final


class ChatClient:
    """Asks an endpoint from any number of tasks of one event loop; an async context manager.

    `sleep` is replaced by tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        pace: Pace | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._pace = pace or Pace()
        self._sleep = sleep
        self._jitter = random.Random()
        self._failures = 0  # since the last success
        self._successes = 0
        self._tokens = 0  # of all successes
        self.retried = 0
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)  # the caller bounds its tasks
        try:
            self._http = httpx.AsyncClient(headers=headers, timeout=endpoint.timeout, limits=unlimited)
        except (ValueError, ImportError) as error:  # of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY
            raise InvalidInputError(f"the proxy that the environment names cannot be used: {error}") from error

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    async def ask(self, text: str, temperature: float, seed: int | None = None) -> Reply:
        """The reply to one message. A request that is given up comes back as a reply with the problem `REQUEST_FAILED`.

        Raises:
            EndpointError: the endpoint refuses every request, or has not answered any for too many tries.
        """
        body = self._body(text, temperature, seed)
        tries = 0
        while True:
            expected = self._expected_tokens(text)
            await self._pace.wait(expected)
            try:
                reply = await asyncio.wait_for(self._post(body, text), self._endpoint.timeout)
            except (TimeoutError, asyncio.TimeoutError):  # two classes up to Python 3.10
                failed = _Failed(f"no reply within {self._endpoint.timeout:g} s")
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the latter of a redirect to nonsense
                failed = _Failed(f"{type(error).__name__}: {error}".rstrip(": "))
            except _Failed as error:
                failed = error
            else:
                total = reply.usage.prompt + reply.usage.reply
                self._pace.settle(expected, total)
                self._failures = 0
                self._successes += 1
                self._tokens += total
                return reply
            tries += 1
            self._count_failure(failed)
            if failed.final or tries > self._endpoint.retries:
                return Reply("", Usage(0, 0, True), (REQUEST_FAILED, f"{failed} (tries: {tries})"))
            self.retried += 1
            if failed.pause is not None:
                if failed.pause > _LONGEST_PAUSE:
                    log.warning("%s asks to wait for %.0f s: %s", self._endpoint.base_url, failed.pause, failed)
                self._pace.hold(failed.pause)
            else:
                await self._sleep(self._pause(tries))

    def _body(self, text: str, temperature: float, seed: int | None) -> dict[str, Any]:
        body = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": temperature,
            "top_p": self._endpoint.top_p,
            "max_tokens": self._endpoint.max_tokens,
            "seed": seed,
            **self._endpoint.body,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def _post(self, body: Mapping[str, Any], text: str) -> Reply:
        response = await self._http.post(f"{self._endpoint.base_url.rstrip('/')}/chat/completions", json=body)
        content = response.content.decode("utf-8", "replace")  # JSON is UTF-8, whatever charset a server names
        if response.status_code == 200:
            return _read_reply(content, text)
        what = f"HTTP {response.status_code}: {_error_message(content)}"
        if response.status_code in _HOPELESS or "insufficient_quota" in content:
            raise self._refused(response.status_code, what)
        if response.status_code in _AGAIN or response.status_code >= 500:
            raise _Failed(what, pause=_retry_after(response.headers.get("Retry-After")))
        raise _Failed(what, final=True)

    def _count_failure(self, failed: _Failed) -> None:
        self._failures += 1
        if self._failures >= self._endpoint.max_failures:
            raise EndpointError(
                f"{self._endpoint.base_url} does not work: {counted(self._failures, 'try', 'tries')} in a row failed, "
                f"the last one with {failed}. What came before is saved; the same command goes on from there"
            )

    def _refused(self, status: int, what: str) -> EndpointError:
        hint = {
            401: f"the key is taken from the environment variable {self._endpoint.key_name}, "
            + ("which was set" if self._endpoint.key else "which is not set"),
            404: f"check --base-url and --model {self._endpoint.model!r}",
        }.get(status, "nothing was tried again")
        return EndpointError(f"{self._endpoint.base_url} refuses requests ({what}); {hint}")

    def _pause(self, tries: int) -> float:
        """Exponential, with up to half of it left to chance, so that many tasks do not come back at once."""
        longest = min(self._endpoint.first_pause * 2.0 ** (tries - 1), _LONGEST_PAUSE)
        return longest * self._jitter.uniform(0.5, 1.0)

    def _expected_tokens(self, text: str) -> int:
        if self._successes:
            return self._tokens // self._successes
        return len(text) // _CHARACTERS_PER_TOKEN + self._endpoint.max_tokens


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
        return url.scheme in ("http", "https") and bool(url.host) and 0 < (url.port or 80) < 2**16
    except (httpx.InvalidURL, UnicodeError):
        return False


def _read_reply(content: str, asked: str) -> Reply:
    """A body of status 200.

    Raises:
        _Failed: no JSON, as from a proxy; another try may help.
    """
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        raise _Failed(f"the body is no JSON: {content[:80]!r}") from None
    whole = whole if isinstance(whole, dict) else {}
    choice = _first(whole.get("choices"))
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text = message.get("content")
    text = text if isinstance(text, str) else ""
    usage = _read_usage(whole.get("usage"), asked, text)
    if not choice:
        return Reply(content, usage, ("no choices", f"the body is {content[:80]!r}"))
    finish = choice.get("finish_reason")
    if isinstance(message.get("refusal"), str) or finish == "content_filter":
        return Reply(text, usage, ("refusal", str(message.get("refusal") or "stopped by a content filter")[:200]))
    if finish == "length":
        return Reply(text, usage, ("cut off", f"the reply reached its bound after {counted(usage.reply, 'token')}"))
    return Reply(text, usage)


def _read_usage(raw: Any, asked: str, text: str) -> Usage:
    raw = raw if isinstance(raw, dict) else {}
    prompt, reply = raw.get("prompt_tokens"), raw.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(reply, int):
        return Usage(prompt, reply, counted=True)
    return Usage(len(asked) // _CHARACTERS_PER_TOKEN, len(text) // _CHARACTERS_PER_TOKEN, counted=False)


def _first(choices: Any) -> dict[str, Any]:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _error_message(content: str) -> str:
    try:
        error = json.loads(content)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        message = content
    return " ".join(str(message).split())[:200] or "no message"


def _retry_after(value: str | None) -> float | None:
    """Seconds or a date, as HTTP has it; None where there is nothing of use."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
