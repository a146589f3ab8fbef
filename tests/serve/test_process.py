"""The command `thalweg serve`, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import thalweg
from tests.cli.conftest import Command
from tests.corpus.tiny import make_text
from tests.serve.running import until

KEY = "a-very-secret-key-7f3a"
SECRET = "xylophone"
"""A word of texts, for which the log is searched."""


class Process:
    """A server, what it says, and its log."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: str) -> None:
        self.process, self.url, self.said = process, url, said
        self.log = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def client(self, **settings: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **settings)

    def wait(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@contextmanager
def started(model: Path, *arguments: object) -> Iterator[Process]:
    command = [sys.executable, "-m", "thalweg.cli", "serve", "--model", f"tiny={model}", "--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "THALWEG_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    said = ""
    try:
        while not (found := re.search(r"Serving on (\S+)", said)):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            said += line
        server = Process(process, found[1], said)
        until(lambda: '"event":"ready"' in server.log)
        yield server
    finally:
        process.terminate()
        process.terminate()
        process.wait(30)
        process.stdout.close()
        if process.stderr is not None:
            time.sleep(0.05)
            process.stderr.close()


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_server_from_start_to_end(model: thalweg.Embedder) -> None:
    """Its plan, its log, and what SIGTERM does under load: what is under way is answered, what comes is refused."""
    with started(model.folder) as server:
        assert re.search(r"tiny: weights +[\d.]+ MiB", server.said)
        assert re.search(r"total +[\d,.]+ MiB", server.said)
        text = f"the {SECRET} plays. " + make_text(150_000)
        found: list[Any] = []

        def ask() -> None:
            with server.client() as client:
                found.append(client.post("/v1/embeddings", json={"input": text, "user": SECRET}))

        with server.client() as client:
            for body in ({"input": SECRET}, {"input": [[10**6]]}, {"input": 5}, {SECRET: 1}):
                client.post("/v1/embeddings", json=body)
            client.post(f"/v1/{SECRET}", json={})
            client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}"})
            client.post("/v1/thalweg/embed", content=SECRET.encode() + b"\xff", headers={"content-type": "text/plain"})
            client.post(f"/v1/thalweg/stream?prompt={SECRET}", content=b"a", headers={"content-type": "text/plain"})
        asking = threading.Thread(target=ask)
        asking.start()
        with server.client() as client:
            until(lambda: 'thalweg_documents_in_flight{model="tiny"} 1' in client.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not _connects(server.url))
        asking.join(30)
        assert server.wait() == 0
        assert found[0].status_code == 200
        assert np.allclose(found[0].json()["data"][0]["embedding"], model.encode(text), atol=1e-5)
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert [each["event"] for each in lines][-1] == "ended"
        assert {"request", "ready", "ending"} <= {each["event"] for each in lines}
        assert KEY not in server.log
        assert SECRET not in server.log


def _connects(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.subprocess
@pytest.mark.kill
@pytest.mark.slow
def test_saved_sessions_survive_a_kill(model: thalweg.Embedder, tmp_path: Path) -> None:
    """Then a second SIGTERM, which does not wait for what is under way."""
    with started(model.folder, "--session-folder", tmp_path / "sessions") as server, server.client() as client:
        id = client.post("/v1/thalweg/sessions", json={"text": "The river "}).json()["id"]
        assert client.post(f"/v1/thalweg/sessions/{id}/save", json={"name": "river"}).status_code == 200
        client.post(f"/v1/thalweg/sessions/{id}/append", json={"text": "floods."})
        server.process.kill()
        server.wait()
    with started(model.folder, "--session-folder", tmp_path / "sessions") as server, server.client() as client:
        assert client.get("/v1/thalweg/saved").json() == {"saved": ["river"]}
        found = client.post("/v1/thalweg/sessions", json={"restore": "river", "text": "rises."})
        vector = client.get(f"/v1/thalweg/sessions/{found.json()['id']}/vector").json()["vector"]
        assert np.allclose(vector, model.encode("The river rises."), atol=1e-5)
        body = json.dumps({"input": [make_text(400_000, seed=n) for n in range(8)]}).encode()
        threading.Thread(target=_ask, args=[server, body], daemon=True).start()
        until(lambda: 'thalweg_documents_in_flight{model="tiny"} 8' in client.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: '"at_once":false' in server.log)
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 8
        assert '"event":"ended"' in server.log
        assert "Traceback" not in server.log


def _ask(server: Process, body: bytes) -> None:
    try:
        with server.client() as client:
            client.post("/v1/embeddings", content=body)
    except httpx.HTTPError:
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "100MiB"], "--memory allows 100"),
        (["--memory", "much"], "'much' is no size"),
        (["--host", "0.0.0.0"], "give it an API key"),
        (["--host", "::"], "give it an API key"),
        (["--api-key", "naïve"], "that no header can hold"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--payload-limit", "1", "--session-memory", "-5"], "no size"),
        (["--max-tokens-per-step", "3"], "too small"),
        (["--uds-path", "/"], "cannot listen on /"),
    ],
)
def test_servers_that_do_not_start(
    thalweg_command: Command,
    model: thalweg.Embedder,
    arguments: list[str],
    words: str,
) -> None:
    result = thalweg_command("serve", "--model", f"tiny={model.folder}", "--port", "0", *arguments)
    assert result.exit_code == 1, result.output
    assert words in result.stderr


def test_a_port_that_is_taken(thalweg_command: Command, model: thalweg.Embedder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = thalweg_command("serve", "--model", model.folder, "--port", port)
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_two_models_of_one_name(thalweg_command: Command) -> None:
    result = thalweg_command("serve", "--model", "a=x", "--model", "a=y")
    assert result.exit_code == 2
    assert "give one of them another" in result.output
