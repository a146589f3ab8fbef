"""What is held of texts and answers does not grow with them, and whoever is sent away comes back as told."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import Running, http_request, running, until
from thalweg.serve import streamed_text, uploads
from thalweg.serve.run import Runner, bound_socket
from thalweg.serve.server import Server
from thalweg.serve.settings import Settings
from thalweg.serve.texts import AHEAD, BLOCK, LongText

PIECE = make_text(10_000).encode()


@pytest.mark.slow
def test_an_upload_is_never_held_whole(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the engine stands still, the client stands still as well."""
    seen: list[uploads.Upload] = []
    sources: list[LongText] = []

    class Upload(uploads.Upload):
        def __init__(self) -> None:
            super().__init__()
            seen.append(self)

    class Source(LongText):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            sources.append(self)

    monkeypatch.setattr(streamed_text, "Upload", Upload)
    monkeypatch.setattr(streamed_text, "LongText", Source)
    engine, go_on = served.server.models[0].thread.engine, threading.Event()
    advance = engine.advance
    monkeypatch.setattr(engine, "advance", lambda: advance() if go_on.wait(20) else [])
    n_sent = 0
    most = 0

    def body() -> Iterator[bytes]:
        nonlocal n_sent, most
        for _ in range(60):
            yield PIECE
            n_sent += len(PIECE)
            if seen:
                most = max(most, seen[0]._held)

    def send() -> Any:
        with served.client() as client:
            return client.post("/v1/thalweg/embed", content=body(), headers={"content-type": "text/plain"})

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.submit(send)
        until(lambda: bool(sources) and sources[0]._ready >= AHEAD)
        time.sleep(0.3)
        assert seen[0].bytes < 20 * len(PIECE)
        assert sources[0]._ready < AHEAD + 2 * BLOCK
        go_on.set()
        assert found.result().status_code == 200
    assert most <= uploads.HELD_BYTES + (1 << 19)  # and what the socket gave at once
    assert seen[0].bytes == 60 * len(PIECE)


@pytest.mark.slow
def test_sections_that_nobody_reads_are_not_made(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text waits until its client takes what is there; then it gets all of it."""
    queues: list[Any] = []
    make = streamed_text._Results.__init__

    def watched(results: Any, *arguments: Any, **settings: Any) -> None:
        make(results, *arguments, **settings)
        queues.append(results._queue)

    monkeypatch.setattr(streamed_text._Results, "__init__", watched)
    text = make_text(25_000)
    body = json.dumps({"text": text, "every": 1}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        sock.sendall(http_request("/v1/thalweg/sections", body, "content-type: application/json"))
        until(lambda: bool(queues) and queues[0].qsize() >= streamed_text.MOST_RESULTS)
        waiting = -1
        while waiting != (waiting := queues[0].qsize()):
            assert waiting < 10_000  # those of some steps, until the pause is heard of
            time.sleep(0.3)
        assert served.in_engine() == 1
        sock.settimeout(20)
        data = b""
        while b'"done":true' not in data[-200:]:
            data += sock.recv(1 << 20)
    assert data.count(b'"section":') == len(served.embedder.tokenize([text])[0]) - 1
    until(lambda: served.in_engine() == 0)


@pytest.mark.slow
def test_who_waits_as_told_is_taken_in(model: thalweg.Embedder) -> None:
    """More than the queue takes, from clients that come back after Retry-After: all are served in the end, and nearly
    all at their second try."""
    settings = Settings(max_queued_tokens=5000, max_wait=0.01)
    text = make_text(300)
    tries: list[int] = []

    def ask(n: int) -> None:
        with server.client() as client:
            for n_tries in range(1, 10):
                found = client.post("/v1/embeddings", json={"input": [text] * 6, "user": f"client {n}"})
                if found.status_code == 200:
                    tries.append(n_tries)
                    return
                assert found.status_code == 429
                assert found.json()["error"]["code"] == "rate_limit_exceeded"
                time.sleep(float(found.headers["retry-after"]))

    with running({"tiny": model}, settings) as server, concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(24)))
    assert len(tries) == 24
    assert max(tries) > 1
    assert sum(n <= 2 for n in tries) >= 0.9 * len(tries)


def test_a_unix_socket(model: thalweg.Embedder, tmp_path: Path) -> None:
    """It replaces one that a killed server left, and nothing else; it goes with the server."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with bound_socket("", 0, path) as (where, url):
        assert url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        runner = Runner(Server({"tiny": model}))
        thread = threading.Thread(target=runner.run_on, args=[where])
        thread.start()
        until(lambda: runner.started)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.post("/embed", json={"inputs": "the river"}).status_code == 200
        with pytest.raises(OSError, match="another server does"), bound_socket("", 0, path):
            pass
        runner.drain()
        thread.join(20)
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(OSError, match="is no socket"), bound_socket("", 0, path):
        pass
    assert path.read_text() == "a file"
