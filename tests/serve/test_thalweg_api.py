"""Texts that are embedded while they arrive, their sections, and vectors on the way."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running, until

TEXT = LONG.encode()


def in_pieces(data: bytes, size: int = 777) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def post(served: Running, path: str, content: Any, kind: str = "text/plain", **query: Any) -> Any:
    with served.client() as client:
        return client.post(f"/v1/thalweg/{path}", content=content, headers={"content-type": kind}, params=query)


def lines_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize("text", ["", "the river", LONG, "naïve 🦢 " * 3000], ids=["empty", "short", "long", "unicode"])
@pytest.mark.parametrize("how", ["whole", "chunked", "json"])
def test_embed(served: Running, text: str, how: str) -> None:
    content: Any = {"whole": text.encode(), "chunked": in_pieces(text.encode()), "json": json.dumps({"text": text})}[
        how
    ]
    found = post(served, "embed", content, "application/json" if how == "json" else "text/plain; charset=utf-8").json()
    assert np.allclose(found["vector"], served.embedder.encode(text), atol=1e-5)
    assert found["tokens"] == len(served.embedder.tokenize([text])[0])
    assert found["model"] == "tiny"


def test_settings(served: Running, last_model: thalweg.Embedder) -> None:
    query = {"model": "last", "normalize": "true", "dimensions": 5, "encoding_format": "base64", "prompt": "say: "}
    found = post(served, "embed", TEXT, **query).json()
    expected = last_model.encode(LONG, normalize_embeddings=True, truncate_dim=5, prompt="say: ")
    assert np.allclose(np.frombuffer(base64.b64decode(found["vector"]), "<f4"), expected, atol=1e-5)


def test_a_text_is_run_while_it_arrives(served: Running) -> None:
    steps: list[int] = []

    def slowly() -> Iterator[bytes]:
        for piece in in_pieces(TEXT, 8000):
            yield piece
            steps.append(served.server.models[0].thread.engine.progress.tokens)
            time.sleep(0.05)

    assert post(served, "embed", slowly()).status_code == 200
    assert steps[-1] > steps[1]


@pytest.mark.parametrize("how", ["whole", "pieces"])
def test_many_texts(served: Running, how: str) -> None:
    texts = [make_text(n, seed=n) for n in (1, 30, 3000, 2, 50)] * 10
    rows = [json.dumps({"id": f"text {n}", "text": text}) for n, text in enumerate(texts)]
    rows[7] = "{"
    rows[8] = '{"text": 5}'
    body = "\n\n".join(rows).encode()
    found = lines_of(post(served, "embed", in_pieces(body) if how == "pieces" else body, "application/x-ndjson"))
    *answers, done = found
    assert done.keys() == {"done", "model", "texts", "tokens"}
    assert done["texts"] == len(texts)
    by_index = {each["index"]: each for each in answers}
    assert sorted(by_index) == list(range(len(texts)))
    assert {n for n, each in by_index.items() if "error" in each} == {7, 8}
    good = [n for n in by_index if n not in (7, 8)]
    assert all(by_index[n]["id"] == f"text {n}" for n in good)
    expected = served.embedder.encode([texts[n] for n in good])
    assert np.allclose([by_index[n]["vector"] for n in good], expected, atol=1e-5)


def shows(found: list[dict[str, Any]], expected: list[thalweg.Embedding]) -> None:
    *sections, done = found
    assert len(sections) == len(expected) == done["sections"]
    for row, each in zip(sections, expected, strict=True):
        assert (row["section"], row["start"], row["end"]) == (each.section, each.char_start, each.char_end)
        assert row["tokens"] == each.n_tokens
        assert np.allclose(row["vector"], each.vector, atol=1e-5)
    assert done["done"] is True
    assert done["characters"] == expected[-1].char_end
    assert done["tokens"] == sum(each.n_tokens for each in expected)


@pytest.mark.parametrize("how", ["text", "json"])
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"every": 100},
        {"by": "paragraph"},
        {"by": "sentence", "every": 3, "mode": "prefix"},
        {"by": "paragraph", "mode": "mean", "look_ahead": 10},
    ],
    ids=str,
)
def test_sections(served: Running, how: str, query: dict[str, Any]) -> None:
    if how == "json":
        found = post(served, "sections", json.dumps({"text": LONG, **query}), "application/json")
    else:
        found = post(served, "sections", in_pieces(TEXT), **query)
    shows(lines_of(found), list(served.embedder.encode_sections(LONG, **query)))


def test_sections_of_the_last_token(served: Running, last_model: thalweg.Embedder) -> None:
    found = lines_of(post(served, "sections", in_pieces(TEXT), model="last", by="paragraph", every=7))
    shows(found, list(last_model.encode_sections(LONG, by="paragraph", every=7)))


def test_boundaries(served: Running) -> None:
    body = json.dumps({"text": LONG, "boundaries": [10, 500, 12345]})
    found = lines_of(post(served, "sections", body, "application/json"))
    shows(found, list(served.embedder.encode_sections(LONG, by=[10, 500, 12345])))


def test_a_stream_of_events(served: Running) -> None:
    found = post(served, "stream", in_pieces(TEXT), every=1000)
    assert found.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in found.text.strip().split("\n\n")]
    assert [each["event"] for each in events] == ["vector"] * (len(events) - 1) + ["done"]
    expected = list(served.embedder.stream(LONG, every=1000))
    for event, (tokens, vector) in zip(events, expected, strict=False):
        data = json.loads(event["data"])
        assert data["tokens"] == tokens
        assert np.allclose(data["vector"], vector, atol=1e-5)
    assert json.loads(events[-1]["data"])["tokens"] == expected[-1][0]


def test_events_come_while_the_text_does(served: Running) -> None:
    """A bare connection, which reads while it writes."""
    sock = served.connect()
    sock.sendall(b"POST /v1/thalweg/stream?every=200 HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
                 b"transfer-encoding: chunked\r\n\r\n")  # fmt: skip
    seen = bytearray()

    def read() -> None:
        while part := sock.recv(1 << 16):
            seen.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    for n, piece in enumerate(in_pieces(TEXT, 5000)):
        sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        if n == 2:
            until(lambda: b"event: vector" in seen)
            assert b"event: done" not in seen
    sock.sendall(b"0\r\n\r\n")
    until(lambda: b"event: done" in seen)
    sock.shutdown(socket.SHUT_RDWR)
    reader.join(10)
    sock.close()


def test_sections_that_are_not_served(served: Running) -> None:
    assert "not served" in post(served, "sections", TEXT, mode="isolated").text
    refused = post(served, "sections", TEXT, model="last", mode="mean")
    assert (refused.status_code, "need mean pooling" in refused.text) == (400, True)


@pytest.mark.parametrize("path", ["embed", "sections", "stream"])
def test_a_text_that_breaks_off(served: Running, path: str) -> None:
    """What has been given stays; the last line says what is wrong."""
    found = post(served, path, in_pieces(TEXT + b"\xff" + TEXT))
    assert "UTF-8" in found.text
    if path == "embed":
        assert found.status_code == 400
    elif path == "sections":
        assert "error" in json.loads(found.text.splitlines()[-1])
    else:
        assert "event: error" in found.text
    until(lambda: served.in_engine() == 0)


@pytest.mark.parametrize(
    ("path", "kind", "query", "status", "words"),
    [
        ("embed", "application/pdf", {}, 415, "Content-Type"),
        ("embed", "text/plain; charset=latin-1", {}, 415, "UTF-8"),
        ("embed", "text/plain", {"dimension": 4}, 400, "dimension"),
        ("embed", "text/plain", {"dimensions": "NaN"}, 400, "dimensions"),
        ("embed", "text/plain", {"dimensions": 10**30}, 400, "dimensions"),
        ("embed", "text/plain", {"model": ["tiny", "last"]}, 400, "twice"),
        ("sections", "text/plain", {"by": "chapter"}, 400, "by"),
        ("sections", "text/plain", {"every": 0}, 400, "every"),
        ("sections", "application/x-ndjson", {}, 415, "Content-Type"),
        ("stream", "text/plain", {"every": -1}, 400, "every"),
        ("stream", "text/plain", {"prompt_name": "none"}, 400, "no prompt named"),
    ],
)
def test_bad_requests(served: Running, path: str, kind: str, query: Any, status: int, words: str) -> None:
    found = post(served, path, TEXT, kind, **query)
    assert found.status_code == status, found.text
    assert words in found.json()["error"]["message"]


def test_boundaries_that_cannot_be(served: Running) -> None:
    found = post(served, "sections", json.dumps({"text": LONG, "boundaries": [500, 10]}), "application/json")
    assert "error" in found.text


@pytest.mark.parametrize("n_words", [300, 4000])
def test_long_prompts(served: Running, n_words: int) -> None:
    """Kept and not kept, before short texts and long ones."""
    prompt = make_text(n_words, seed=9)
    for text in ("the river", LONG):
        body = json.dumps({"text": text, "prompt": prompt})
        found = post(served, "embed", body, "application/json").json()
        assert np.allclose(found["vector"], served.embedder.encode(text, prompt=prompt), atol=1e-5)
        assert found["tokens"] == len(served.embedder.tokenize([text], prompt)[0])
    lines = "\n".join(json.dumps({"text": text}) for text in ("the river", "boats"))
    answers = lines_of(post(served, "embed", lines, "application/x-ndjson", prompt=prompt[:5000]))
    expected = served.embedder.encode(["the river", "boats"], prompt=prompt[:5000])
    by_index = sorted(answers[:-1], key=lambda each: each["index"])
    assert np.allclose([each["vector"] for each in by_index], expected, atol=1e-5)
