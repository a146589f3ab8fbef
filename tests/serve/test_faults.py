"""Clients that vanish, dawdle, lie or send rubbish: others are served, nothing stays behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running, answer, http_request, running, until
from thalweg.serve.settings import Settings

pytestmark = pytest.mark.slow

ENDLESS = make_text(400_000)
"""A text that keeps the tiny model busy for long."""


LIMITS = Settings(
    payload_limit=100_000, max_body_bytes=300_000, max_client_batch_size=100, request_timeout=20, max_streams=2
)


@pytest.fixture(scope="module")
def strict(model: thalweg.Embedder) -> Iterator[Running]:
    """With small limits."""
    with running({"tiny": model}, LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(model: thalweg.Embedder) -> Iterator[Running]:
    """With small limits, those on time included."""
    with running({"tiny": model}, replace(LIMITS, header_timeout=0.6, body_timeout=0.6)) as server:
        yield server


def is_served(server: Running) -> None:
    with server.client() as client:
        found = client.post("/embed", json={"inputs": "the river"})
    assert np.allclose(found.json(), server.embedder.encode(["the river"]), atol=1e-5)


def vanish(sock: socket.socket) -> None:
    """Close a connection, some with a reset."""
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("go", [vanish, reset])
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_client_that_goes_takes_its_texts_along(served: Running, go: Any, path: str) -> None:
    body = json.dumps({"input" if "v1" in path else "inputs": [ENDLESS] * 3}).encode()
    sock = served.connect()
    sock.sendall(http_request(path, body))
    until(lambda: served.in_engine() == 3)
    go(sock)
    until(lambda: served.in_engine() == 0, 10)
    admission = served.server.models[0].admission
    until(lambda: admission.tokens == admission.texts == 0)
    until(lambda: served.server.budget.held == 0)
    is_served(served)


@pytest.mark.parametrize("go", [vanish, reset])
@pytest.mark.parametrize("path", ["embed", "sections", "stream"])
def test_a_client_that_goes_in_mid_upload(served: Running, go: Any, path: str) -> None:
    sock = served.connect()
    data = ENDLESS.encode()
    head = http_request(f"/v1/thalweg/{path}", b"", "content-type: text/plain")
    head = head.replace(b"content-length: 0", b"content-length: %d" % (2 * len(data)))
    sock.sendall(head + data[:200_000])
    until(lambda: served.in_engine() == 1)
    threading.Thread(target=lambda: _send(sock, data), daemon=True).start()
    time.sleep(0.1)  # what is not read yet stands between the server and the end
    go(sock)
    until(lambda: served.in_engine() == 0, 10)
    until(lambda: served.server.uploads == 0)
    is_served(served)


def sends(sock: socket.socket, data: bytes) -> bool:
    """Whether the other side still takes it."""
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_a_client_that_goes_before_its_body_is_there(served: Running) -> None:
    for body in (b"", b'{"inputs": "the ri'):
        sock = served.connect()
        head = http_request("/embed", b"").replace(b"content-length: 0", b"content-length: 1000")
        sock.sendall(head + body)
        time.sleep(0.05)
        sock.close()
    until(lambda: served.server.budget.held == 0)
    is_served(served)


def test_headers_that_dawdle(hasty: Running) -> None:
    """A byte now and then, from the first one on and on a connection that was used."""
    with hasty.connect() as silent, hasty.connect() as sock, hasty.connect() as used:
        used.sendall(http_request("/health", b"", method="GET"))
        assert answer(used).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        for byte in b"POST /embed HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 200:
            try:
                sock.sendall(bytes([byte]))
                used.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        assert answer(silent) == b""
        assert time.monotonic() - began < 3
        is_served(hasty)


def test_headers_without_end(strict: Running) -> None:
    with strict.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        until(lambda: not sends(sock, b"x-a: %s\r\n" % (b"a" * 1000)))
    is_served(strict)


@pytest.mark.parametrize("path", ["/embed", "/v1/thalweg/embed", "/v1/thalweg/sections"])
def test_bodies_that_dawdle(hasty: Running, path: str) -> None:
    kind = "content-type: text/plain" if "thalweg" in path else "x: y"
    with hasty.connect() as sock:
        sock.sendall(http_request(path, b"", kind).replace(b"content-length: 0", b"content-length: 1000") + b"{")
        assert answer(sock).startswith(b"HTTP/1.1 408")
    until(lambda: hasty.server.budget.held == 0)
    is_served(hasty)


def test_a_body_that_dawdles_over_its_whole_length(hasty: Running) -> None:
    """Each piece in time, the whole not."""
    with hasty.connect() as sock:
        sock.sendall(http_request("/embed", b"").replace(b"content-length: 0", b"content-length: 1000"))
        for _ in range(8):
            time.sleep(0.1)
            sock.sendall(b" ")
        assert answer(sock).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_that_are_too_large(strict: Running, chunked: bool) -> None:
    body = json.dumps({"inputs": "a" * 200_000}).encode()
    pieces = (body[n : n + 10_000] for n in range(0, len(body), 10_000))
    with strict.client() as client:
        found = client.post("/embed", content=pieces if chunked else body)
        assert found.status_code == 413
        assert "/v1/thalweg/embed, which has no limit" in found.json()["error"]
        assert client.get("/health").status_code == 200  # on the same connection
    until(lambda: strict.server.budget.held == 0)


def test_a_refused_body_is_read_for_a_while_only(hasty: Running) -> None:
    with hasty.connect() as sock:
        sock.sendall(http_request("/embed", b"").replace(b"content-length: 0", b"content-length: 999999999"))
        assert answer(sock).startswith(b"HTTP/1.1 413")
        until(lambda: not sends(sock, b" "), 5)


def test_an_upload_has_no_limit_but_a_line_has(strict: Running) -> None:
    text = make_text(50_000)
    kind = {"content-type": "text/plain"}
    with strict.client() as client:
        found = client.post("/v1/thalweg/embed", content=text.encode(), headers=kind)
        assert np.allclose(found.json()["vector"], strict.embedder.encode(text), atol=1e-5)
        line = json.dumps({"text": text}).encode()
        refused = client.post("/v1/thalweg/embed", content=line, headers={"content-type": "application/x-ndjson"})
        assert "more than the 100,000 bytes" in refused.text
    until(lambda: strict.server.budget.held == 0)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v1/thalweg/embed"])
def test_compressed_bodies(strict: Running, path: str) -> None:
    bomb = gzip.compress(b"a" * 50_000_000)
    with strict.client() as client:
        found = client.post(path, content=bomb, headers={"content-encoding": "gzip", "content-type": "text/plain"})
    assert found.status_code == 415


@pytest.mark.parametrize(
    "head",
    [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: -5",
        "content-length: +5",
        "content-length: 5, 5",
        "content-length: 99999999999999999999999999",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        "content-length : 5",
    ],
)
def test_requests_with_two_lengths(strict: Running, head: str) -> None:
    """What is behind the one length must not pass for another request."""
    smuggled = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with strict.connect() as sock:
        sock.sendall(f"POST /embed HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{smuggled}".encode())
        sock.settimeout(2)
        found = b""
        while part := _received(sock):
            found += part
    assert b"thalweg_requests" not in found
    assert found == b"" or found.split()[1][:1] in (b"4", b"5")


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except OSError:
        return b""


RUBBISH = [
    b"\x00\x01\x02",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /%00%ff%2e%2e HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health?a=%ff&%00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /v1/models/" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST /embed HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /embed HTTP/1.1\r\nhost: localhost\r\nx-priority: \xff\r\ncontent-length: 15\r\n\r\n" + b'{"inputs": "a"}',
    b"POST /embed HTTP/1.1\r\nhost: localhost\r\nx-request-timeout: nan\r\ncontent-length: 15\r\n\r\n"
    + b'{"inputs": "a"}',
]


@pytest.mark.parametrize("data", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish(strict: Running, data: bytes) -> None:
    with strict.connect() as sock:
        sock.sendall(data)
        sock.settimeout(2)
        found = answer(sock)
    assert b" 500 " not in found.split(b"\r\n")[0]
    is_served(strict)


def test_uploads_at_a_time_are_bounded(strict: Running) -> None:
    socks = []
    for _ in range(2):
        sock = strict.connect()
        head = http_request("/v1/thalweg/stream", b"", "content-type: text/plain", "transfer-encoding: chunked")
        sock.sendall(head.replace(b"content-length: 0\r\n", b""))
        socks.append(sock)
    until(lambda: strict.server.uploads == 2)
    with strict.client() as client:
        found = client.post("/v1/thalweg/embed", content=b"a", headers={"content-type": "text/plain"})
        assert (found.status_code, "retry-after" in found.headers) == (429, True)
    is_served(strict)
    for sock in socks:
        sock.close()
    until(lambda: strict.server.uploads == 0)


def test_bodies_at_a_time_are_bounded(hasty: Running) -> None:
    """Whoever comes when the memory for bodies is full is told to come again."""
    socks = []
    for _ in range(4):
        sock = hasty.connect()
        sock.sendall(http_request("/embed", b"").replace(b"content-length: 0", b"content-length: 99999"))
        sock.sendall(b" " * 90_000)
        socks.append(sock)
    answers = [answer(sock)[:12] for sock in socks]
    for sock in socks:
        sock.close()
    assert answers.count(b"HTTP/1.1 408") == 3
    assert answers.count(b"HTTP/1.1 429") == 1
    until(lambda: hasty.server.budget.held == 0)


def test_too_many_texts(strict: Running) -> None:
    with strict.client() as client:
        found = client.post("/v1/embeddings", json={"input": ["a"] * 101})
    assert found.status_code == 413


def test_a_deadline(served: Running) -> None:
    with served.client() as client:
        found = client.post("/embed", json={"inputs": ENDLESS}, headers={"x-request-timeout": "0.2"})
    assert found.status_code == 504
    until(lambda: served.in_engine() == 0, 10)


def test_many_tiny_requests(served: Running) -> None:
    """One after the other on some connections, with vectors that are right."""
    expected = served.embedder.encode(["the river"])

    def ask() -> None:
        with served.client() as client:
            for _ in range(60):
                found = client.post("/embed", json={"inputs": "the river"})
                good.append(bool(found.status_code == 200 and np.allclose(found.json(), expected, atol=1e-5)))

    good: list[bool] = []
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 480
    until(lambda: served.server.budget.held == 0)


def test_keys(model: thalweg.Embedder) -> None:
    with running({"tiny": model}, keys={"ada": "secret", "grace": "other secret"}) as server:
        for key, status in (("secret", 200), ("other secret", 200), ("secre", 401), ("secret2", 401), (None, 401)):
            with server.client(key) as client:
                assert client.get("/v1/models").status_code == status
                assert client.post("/embed", json={"inputs": "a"}).status_code == status
                assert client.post("/v1/thalweg/embed", json={"text": "a"}).status_code == status
                assert client.get("/metrics").status_code == status
                assert client.get("/health").status_code == 200
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            for header in ("Basic secret", "Bearer", "secret", "bearer  secret", "Bearer " + "a" * 10_000):
                found = client.get("/v1/models", headers={"authorization": header})
                assert found.status_code == (200 if header == "bearer  secret" else 401)
                assert "secret" not in found.text


def test_cors(model: thalweg.Embedder) -> None:
    settings = Settings(cors_allow_origin=("https://good.example",))
    with running({"tiny": model}, settings) as server, server.client() as client:
        for origin, allowed in (("https://good.example", True), ("https://evil.example", False)):
            found = client.get("/v1/models", headers={"origin": origin})
            assert ("access-control-allow-origin" in found.headers) is allowed


def test_one_bad_text_beside_others(served: Running) -> None:
    """Requests that share a group of the tokenizer and a step of the engine."""
    bad = httpx.Request("POST", served.url + "/embed", content=b'{"inputs": ["a", "\\ud800"]}')
    with served.client() as client:
        assert client.send(bad).status_code == 400
        assert client.post("/embed", json={"inputs": LONG}).status_code == 200


def test_a_client_that_does_not_read(model: thalweg.Embedder) -> None:
    """Its answer counts among the bytes that are held, others are told so, and it is dropped after a while."""
    settings = Settings(max_body_bytes=3_000_000, payload_limit=100_000, body_timeout=1)
    with running({"tiny": model}, settings) as server:
        body = json.dumps({"input": ["a"] * 2000}).encode()
        socks = []
        for _ in range(2):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            sock.sendall(http_request("/v1/embeddings", body))
            socks.append(sock)
        until(lambda: server.server.budget.held > 2_000_000)
        with server.client() as client:
            refused = client.post("/v1/embeddings", content=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        is_served(server)
        until(lambda: server.server.budget.held == 0)
        for sock in socks:
            sock.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
    ],
)
def test_other_names_for_a_server_without_a_key(
    served: Running, model: thalweg.Embedder, host: str, status: int
) -> None:
    """A page whose name leads to this machine (DNS rebinding)."""
    with served.client() as client:
        for path in ("/v1/thalweg/sessions", "/v1/models"):
            assert client.get(path, headers={"host": host}).status_code == status
        assert client.post("/v1/thalweg/embed", json={"text": "a"}, headers={"host": host}).status_code == status
        assert client.get("/health", headers={"host": host}).status_code == 200
