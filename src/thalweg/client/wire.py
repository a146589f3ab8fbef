"""What both clients say and hear: bodies, queries, answers, and when another try is worth it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt

from thalweg.errors import EndpointError

FloatArray = npt.NDArray[np.float32]

URL = "http://127.0.0.1:8080"

AGAIN = frozenset({408, 429, 503})
"""Statuses that another try may change."""

LONGEST_PAUSE = 60.0
"""Seconds before another try, where the server does not say how many."""

PIECE = 1 << 16
"""Characters or bytes of a file that are sent at a time."""


class RemoteSection(NamedTuple):
    """A section of a text: the characters [start, end), how many tokens, and the vector (d,)."""

    section: int
    start: int
    end: int
    tokens: int
    vector: FloatArray


class Options:
    """Where and how to ask, for both clients."""

    def __init__(self, model: str | None, retries: int) -> None:
        self.model, self.retries = model, retries

    def of(self, **options: Any) -> dict[str, Any]:
        """The options that are given, and the model."""
        given = {"model": self.model, **options}
        return {name: value for name, value in given.items() if value is not None}

    def texts(self, texts: str | Sequence[str], prompt_name: str | None, dimensions: int | None) -> dict[str, Any]:
        """The body of `/v1/embeddings`."""
        given = texts if isinstance(texts, str) else list(texts)
        return self.of(input=given, prompt_name=prompt_name, dimensions=dimensions, encoding_format="base64")

    def query(self, **options: Any) -> dict[str, Any]:
        """The same, as the query of a URL has them."""
        shown = {True: "true", False: "false"}
        return {
            name: shown[value] if isinstance(value, bool) else value
            for name, value in self.of(encoding_format="base64", **options).items()
        }

    def pause(
        self, response: httpx.Response | None, failure: httpx.HTTPError | None, n_tries: int, *, twice: bool
    ) -> float | None:
        """Seconds before another try; None: there is none.

        twice: whether the request may be carried out twice, where a connection breaks off before the answer.
        """
        if n_tries > self.retries or (response is not None and response.status_code not in AGAIN):
            return None
        if failure is not None and not (twice or isinstance(failure, httpx.ConnectError)):
            return None
        stated = None if response is None else response.headers.get("retry-after")
        if stated is not None and stated.isdigit():
            return float(stated)
        return min(LONGEST_PAUSE, 0.5 * 2 ** (n_tries - 1)) * random.uniform(0.5, 1)


def checked(response: httpx.Response) -> httpx.Response:
    """Raises EndpointError with what the server says."""
    if response.is_success:
        return response
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise EndpointError(f"{response.request.url.path} answers {response.status_code}: {message}")


def vector_of(encoded: str) -> FloatArray:
    return np.frombuffer(base64.b64decode(encoded), dtype="<f4").astype(np.float32)


def vectors_of(response: httpx.Response, *, single: bool) -> FloatArray:
    found = np.stack([vector_of(each["embedding"]) for each in checked(response).json()["data"]])
    return found[0] if single else found


def section_of(line: str) -> RemoteSection | None:
    """None for the last line.

    Raises:
        EndpointError: the server could not read on.
    """
    found = json.loads(line)
    if "error" in found:
        raise EndpointError(f"the text cannot be embedded to its end: {found['error']['message']}")
    if found.get("done"):
        return None
    return RemoteSection(found["section"], found["start"], found["end"], found["tokens"], vector_of(found["vector"]))


def check_ended(*, whole: bool) -> None:
    if not whole:
        raise EndpointError("the connection ended before the last section")


def pieces(text: Any) -> Iterator[bytes]:
    """A text as bytes: a str, bytes, an open file, or an iterable of one of them."""
    if isinstance(text, str | bytes):
        text = [text]
    elif hasattr(text, "read"):
        text = _read(text)
    for piece in text:
        yield piece.encode() if isinstance(piece, str) else piece


def _read(stream: Any) -> Iterator[str | bytes]:
    while piece := stream.read(PIECE):
        yield piece


async def async_pieces(text: Any) -> AsyncIterator[bytes]:
    if isinstance(text, AsyncIterable):
        async for piece in text:
            yield piece.encode() if isinstance(piece, str) else piece
        return
    for piece in pieces(text):
        yield piece


def headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}


PLAIN = {"content-type": "text/plain; charset=utf-8"}
SESSIONS = "/v1/thalweg/sessions"


def unreachable(error: httpx.HTTPError) -> EndpointError:
    return EndpointError(f"the server does not answer: {type(error).__name__}: {error}")


def answer(response: httpx.Response | None, failure: httpx.HTTPError | None) -> httpx.Response:
    if response is None:
        assert failure is not None
        raise unreachable(failure) from failure
    return response
