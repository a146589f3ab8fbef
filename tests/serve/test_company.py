"""Requests that share steps: vectors do not depend on the company, and short texts do not wait for long ones."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Hashable
from typing import Any

import httpx
import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running, running, until
from thalweg.engine.engine import Engine
from thalweg.engine.results import Failure, Pooled
from thalweg.engine.sources import Ids
from thalweg.serve import Settings, serving
from thalweg.serve.engine_thread import EngineThread

pytestmark = pytest.mark.slow

TEXTS = [make_text(n, seed=n) for n in (1, 7, 40, 400, 3000)]


async def together(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))


def test_vectors_do_not_depend_on_the_company(served: Running) -> None:
    """Alone, and beside others with prompts, ids and lengths of all kinds: 1e-6."""
    with served.client() as client:
        alone = [client.post("/v1/embeddings", json={"input": text}).json()["data"][0]["embedding"] for text in TEXTS]
    company = [
        {"input": text, **settings, "user": str(n % 3)}
        for n, (text, settings) in enumerate(
            (text, settings)
            for text in TEXTS
            for settings in ({}, {"prompt_name": "query"}, {"dimensions": 5}, {"model": "last"})
        )
    ]
    bodies = [body for text in TEXTS for body in [{"input": text}, *company[:6]]] + [{"input": [LONG, *TEXTS]}]
    found = asyncio.run(together(served.url, bodies))
    assert {each.status_code for each in found} == {200}
    for body, response in zip(bodies, found, strict=True):
        if body.keys() == {"input"} and isinstance(body["input"], str):
            vector = response.json()["data"][0]["embedding"]
            assert np.abs(np.array(vector) - alone[TEXTS.index(body["input"])]).max() < 1e-6


def test_short_texts_do_not_wait_for_long_ones(served: Running) -> None:
    body = {"input": [make_text(300_000, seed=n) for n in range(2)], "user": "long"}
    threading.Thread(target=_ask_until_cut_off, args=[served, body, done := threading.Event()]).start()
    until(lambda: served.server.models[0].thread.engine.progress.in_flight == 2)
    with served.client() as client:
        for n in range(10):
            found = client.post("/v1/embeddings", json={"input": f"the river {n}", "user": "short"})
            assert found.status_code == 200
    assert served.in_engine() == 2
    done.set()
    until(lambda: served.in_engine() == 0)


def _ask_until_cut_off(served: Running, body: Any, done: threading.Event) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as client:
            task = asyncio.ensure_future(client.post("/v1/embeddings", json=body))
            while not done.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(ask())


def test_tiny_texts_say_little_of_long_ones(model: thalweg.Embedder) -> None:
    """The estimate by which a text is taken in."""
    with running({"tiny": model}) as server, server.client() as client:
        served = server.server.models[0]
        client.post("/embed", json={"inputs": LONG})
        for _ in range(100):
            client.post("/embed", json={"inputs": ["a", "", "🦢"]})
        exact = len(model.tokenize([LONG])[0])
        assert abs(served.estimate(LONG) - exact) < 0.1 * exact


def test_a_step_that_fails(
    model: thalweg.Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever was in it gets an error in the interface's own shape, and the next ones are served."""
    with running({"tiny": model}) as server, server.client() as client:
        engine = server.server.models[0].thread.engine
        monkeypatch.setattr(engine, "advance", _broken)
        with caplog.at_level(logging.ERROR, "thalweg.serve"):
            tei = client.post("/embed", json={"inputs": "the river"})
            openai = client.post("/v1/embeddings", json={"input": "the river"})
        monkeypatch.undo()
        assert (tei.status_code, tei.json()["error_type"]) == (424, "Backend")
        assert (openai.status_code, openai.json()["error"]["type"]) == (500, "server_error")
        assert "river" not in tei.text + openai.text
        events = [record.event for record in caplog.records]  # type: ignore[attr-defined]
        assert any("ValueError in _broken" in str(event) for event in events)
        assert "the river" not in str(events)
        assert client.post("/embed", json={"inputs": "the river"}).status_code == 200
        assert client.get("/health").status_code == 200


def _broken() -> None:
    raise ValueError("the river")


class Loop:
    """Counts what is handed over."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def call_soon_threadsafe(self, _: Any, batch: list[Any]) -> None:
        self.batches.append(batch)


class Receiver:
    def __init__(self, loop: Any = None) -> None:
        self.loop = loop
        self.results: list[Pooled | Failure] = []

    def receive(self, result: Pooled | Failure) -> None:
        self.results.append(result)


def test_results_leave_by_one_call_a_step(model: thalweg.Embedder) -> None:
    steps: list[int] = []

    def on_step(tokens: int, seconds: float, clients: Counter[Hashable]) -> None:
        steps.append(tokens)

    loop = Loop()
    thread = EngineThread(Engine(model.model, model.pooling), "test", on_step)
    ids = model.tokenize(TEXTS * 20)
    for each in ids:
        thread.add(Ids(each), Receiver(loop), client="a")
    until(lambda: sum(map(len, loop.batches)) == len(ids))
    assert len(loop.batches) <= len(steps)
    assert sum(steps) == sum(map(len, ids))
    assert thread.rate > 0
    thread.close()


def test_whoever_waits_hears_of_the_end(model: thalweg.Embedder) -> None:
    class Endless:
        def take(self, n: int) -> Any:
            time.sleep(0.01)
            return Ids(np.ones(n + 1, dtype=np.int32)).take(n)

    thread = EngineThread(Engine(model.model, model.pooling), "test")
    receiver, removed = Receiver(), Receiver()
    thread.add(Endless(), receiver)
    thread.remove(thread.add(Endless(), removed))
    thread.close()
    assert not thread.is_alive
    assert [type(each) for each in receiver.results] == [Failure]
    assert removed.results == []
    with pytest.raises(RuntimeError, match="has ended"):
        thread.add(Endless(), receiver)


def test_a_server_beside_other_work(model: thalweg.Embedder) -> None:
    with serving({"a": model, "b": model}, settings=Settings(payload_limit=1000), api_keys={"ada": "key"}) as url:
        headers = {"authorization": "Bearer key"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            found = client.post("/v1/embeddings", json={"input": "the river", "model": "b"}).json()
            assert client.post("/embed", json={"inputs": "a" * 2000}).status_code == 413
    assert np.allclose(found["data"][0]["embedding"], model.encode("the river"), atol=1e-5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    with pytest.raises(thalweg.InvalidInputError, match="give it an API key"), serving(model, host="0.0.0.0"):
        pass
