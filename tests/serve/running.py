"""A real server on loopback, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import thalweg
from tests.corpus.tiny import make_text
from thalweg.engine.schedule import Schedule
from thalweg.serve.keys import Keys
from thalweg.serve.run import Runner, bound_socket
from thalweg.serve.server import Server
from thalweg.serve.settings import Settings

LONG = make_text(6000)
"""Some ten thousand tokens of the tiny model, longer than what is tokenised at once."""


@dataclass
class Running:
    """A server that runs."""

    server: Server
    runner: Runner
    url: str
    embedder: thalweg.Embedder

    def client(self, key: str | None = None, **settings: Any) -> httpx.Client:
        """Of this server."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **settings)

    def connect(self) -> socket.socket:
        """A bare connection."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    def in_engine(self) -> int:
        """Documents in the engine of the first model."""
        return len(self.server.models[0].thread.engine)


@contextmanager
def running(
    embedders: Mapping[str, thalweg.Embedder],
    settings: Settings | None = None,
    keys: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
) -> Iterator[Running]:
    """A server with these models."""
    with bound_socket("127.0.0.1", 0, None) as (where, url):
        server = Server(embedders, settings, Keys(keys), schedule=schedule)
        runner = Runner(server)
        thread = threading.Thread(target=runner.run_on, args=[where])
        thread.start()
        try:
            until(lambda: runner.started)
            yield Running(server, runner, url, next(iter(embedders.values())))
        finally:
            runner.force_exit = True
            runner.drain()
            thread.join(30)
            assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def http_request(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(sock: socket.socket) -> bytes:
    """All that comes until the server closes, or the first answer is whole."""
    data = b""
    while True:
        try:
            part = sock.recv(1 << 16)
        except (ConnectionError, TimeoutError):
            return data
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")),
            None,
        )
        if not part or (end and length is not None and len(body) >= length):
            return data
