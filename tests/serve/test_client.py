"""`thalweg.client` against a real server."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running, running
from thalweg.client import AsyncClient, Client
from thalweg.serve import Settings

TEXTS = ["the river", LONG, ""]
SOURCES: list[Any] = [LONG, LONG.encode(), [LONG[:5000], LONG[5000:]], io.StringIO(LONG), io.BytesIO(LONG.encode())]


@pytest.fixture
def client(served: Running) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


def test_embed(served: Running, client: Client, last_model: thalweg.Embedder) -> None:
    assert np.allclose(client.embed(TEXTS), served.embedder.encode(TEXTS), atol=1e-5)
    one = client.embed("the river", prompt_name="query", dimensions=5)
    expected = served.embedder.encode("the river", prompt_name="query", truncate_dim=5)
    assert one.shape == (5,)
    assert np.allclose(one, expected, atol=1e-5)
    with Client(served.url, model="last") as other:
        assert np.allclose(other.embed(TEXTS), last_model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("text", SOURCES, ids=lambda text: type(text).__name__)
def test_embed_stream(served: Running, client: Client, text: Any) -> None:
    found = client.embed_stream(text, prompt="say: ", normalize=False)
    assert np.allclose(found, served.embedder.encode(LONG, prompt="say: ", normalize_embeddings=False), atol=1e-5)


def test_sections(served: Running, client: Client) -> None:
    found = list(client.sections(LONG, by="paragraph", every=2))
    expected = list(served.embedder.encode_sections(LONG, by="paragraph", every=2))
    assert [each[:4] for each in found] == [(e.section, e.char_start, e.char_end, e.n_tokens) for e in expected]
    assert np.allclose([each.vector for each in found], [each.vector for each in expected], atol=1e-5)


def test_sessions(served: Running, client: Client) -> None:
    session = client.session(prompt_name="query")
    session.append("The bridge ")
    other = session.fork()
    session.append("held.")
    other.append("fell.")
    for each, text in ((session, "The bridge held."), (other, "The bridge fell.")):
        assert np.allclose(each.vector(), served.embedder.encode(text, prompt_name="query"), atol=1e-5)
    assert session.tokens == len(served.embedder.tokenize(["The bridge held."], served.embedder.prompts["query"])[0])
    session.delete()
    with pytest.raises(thalweg.EndpointError, match="404: there is no such session"):
        session.vector()


def test_errors(client: Client) -> None:
    with pytest.raises(thalweg.EndpointError, match="400: dimensions must be"):
        client.embed("a", dimensions=99)
    with pytest.raises(thalweg.EndpointError, match=r"400: .*UTF-8"):
        client.embed_stream([b"the r\xff"])
    with pytest.raises(thalweg.EndpointError, match=r"to its end: .*UTF-8"):
        list(client.sections([LONG.encode(), b"\xff"], every=100))
    with pytest.raises(thalweg.EndpointError, match="mode"):
        list(client.sections(LONG, mode="other"))


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=1) as client:
        for ask in (client.embed, client.embed_stream, lambda text: list(client.sections(text))):
            with pytest.raises(thalweg.EndpointError, match="does not answer"):
                ask("a")


def test_a_connection_that_breaks_off_in_an_append() -> None:
    """Whether it was carried out, nobody knows: it is not sent again. What can be done twice is."""
    tries: list[bytes] = []

    def serve() -> None:
        while len(tries) < 3:
            sock, _ = server.accept()
            with sock:
                tries.append(sock.recv(1 << 16).split(b" ")[1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        with Client(f"http://127.0.0.1:{server.getsockname()[1]}", retries=1) as client:
            with pytest.raises(thalweg.EndpointError, match="does not answer"):
                client.session()
            with pytest.raises(thalweg.EndpointError, match="does not answer"):
                client.embed("a")
        thread.join(10)
    assert tries == [b"/v1/thalweg/sessions", b"/v1/embeddings", b"/v1/embeddings"]


@pytest.mark.slow
def test_it_waits_as_it_is_told(model: thalweg.Embedder) -> None:
    """Many at once, more than the queue takes, all are answered."""
    with running({"tiny": model}, Settings(max_queued_tokens=3000, max_wait=0.01)) as server:

        async def ask() -> list[Any]:
            async with AsyncClient(server.url) as client:
                return await asyncio.gather(*(client.embed([make_text(200, seed=n)] * 5) for n in range(12)))

        found = asyncio.run(ask())
    for n, vectors in enumerate(found):
        assert np.allclose(vectors, model.encode(make_text(200, seed=n)), atol=1e-5)


def test_asyncio(served: Running) -> None:
    async def pieces() -> AsyncIterator[str]:
        for start in range(0, len(LONG), 3000):
            yield LONG[start : start + 3000]

    async def ask() -> None:
        async with AsyncClient(served.url) as client:
            assert np.allclose(await client.embed(TEXTS), served.embedder.encode(TEXTS), atol=1e-5)
            assert np.allclose(await client.embed_stream(pieces()), served.embedder.encode(LONG), atol=1e-5)
            found = [each async for each in client.sections(pieces(), every=500)]
            expected = list(served.embedder.encode_sections(LONG, every=500))
            assert np.allclose([each.vector for each in found], [each.vector for each in expected], atol=1e-5)
            session = await client.session(text="The ")
            other = await session.fork()
            await session.append("river")
            assert np.allclose(await session.vector(), served.embedder.encode("The river"), atol=1e-5)
            assert await session.tokens() == len(served.embedder.tokenize(["The river"])[0])
            await session.delete()
            with pytest.raises(thalweg.EndpointError, match="--session-folder"):
                await other.save("a")
            with pytest.raises(thalweg.EndpointError, match="no model"):
                async with AsyncClient(served.url, model="none") as wrong:
                    await wrong.embed("a")

    asyncio.run(ask())
