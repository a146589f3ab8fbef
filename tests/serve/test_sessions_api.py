"""Sessions and prefixes of clients."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running, http_request, running
from thalweg.serve.settings import Settings

pytestmark = pytest.mark.slow

KEYS = {"ada": "key-of-ada", "grace": "key-of-grace"}
ROOT = "/v1/thalweg/sessions"


@pytest.fixture
def keyed(model: thalweg.Embedder, tmp_path: Path) -> Iterator[Running]:
    settings = Settings(session_folder=tmp_path, session_memory=20_000, max_sessions=5)
    with running({"tiny": model}, settings, KEYS) as server:
        yield server


@pytest.fixture
def ada(keyed: Running) -> Iterator[httpx.Client]:
    with keyed.client(KEYS["ada"]) as client:
        yield client


@pytest.fixture
def grace(keyed: Running) -> Iterator[httpx.Client]:
    with keyed.client(KEYS["grace"]) as client:
        yield client


def begin(client: httpx.Client, **settings: Any) -> str:
    found = client.post(ROOT, json=settings)
    assert found.status_code == 201, found.text
    return str(found.json()["id"])


def vector(client: httpx.Client, id: str) -> Any:
    found = client.get(f"{ROOT}/{id}/vector")
    assert found.status_code == 200, found.text
    return found.json()["vector"]


def test_a_session_is_its_whole_text(ada: httpx.Client, model: thalweg.Embedder) -> None:
    id = begin(ada, prompt_name="query")
    data = (LONG[:9000] + "naïve 🦢").encode()
    for start in range(0, len(data), 3001):
        piece = data[start : start + 3001]
        found = ada.post(f"{ROOT}/{id}/append", content=piece, headers={"content-type": "text/plain"})
        assert found.status_code == 200, found.text
    text = data.decode()
    assert np.allclose(vector(ada, id), model.encode(text, prompt_name="query"), atol=1e-5)
    assert ada.get(f"{ROOT}/{id}").json()["tokens"] == len(model.tokenize([text], model.prompts["query"])[0])
    more = ada.post(f"{ROOT}/{id}/append", json={"text": " The end."})
    assert more.json()["tokens"] > found.json()["tokens"]


def test_forks(ada: httpx.Client, model: thalweg.Embedder) -> None:
    id = begin(ada, text="The bridge ", dimensions=9)
    other = ada.post(f"{ROOT}/{id}/fork").json()["id"]
    ada.post(f"{ROOT}/{id}/append", json={"text": "held."})
    ada.post(f"{ROOT}/{other}/append", json={"text": "fell."})
    for each, text in ((id, "The bridge held."), (other, "The bridge fell.")):
        assert np.allclose(vector(ada, each), model.encode(text, truncate_dim=9), atol=1e-5)
    assert {each["id"] for each in ada.get(ROOT).json()["sessions"]} == {id, other}
    assert ada.delete(f"{ROOT}/{id}").status_code == 204
    assert ada.get(f"{ROOT}/{id}").status_code == 404
    assert {each["id"] for each in ada.get(ROOT).json()["sessions"]} == {other}


def test_more_sessions_than_fit_into_memory(keyed: Running, ada: httpx.Client, model: thalweg.Embedder) -> None:
    texts = [make_text(200, seed=n) for n in range(5)]
    ids = [begin(ada, text=text) for text in texts]
    sessions = keyed.server.sessions(keyed.server.models[0])
    assert sessions.nbytes <= 20_000 < sum(held.session.nbytes for held in sessions.of("ada"))
    assert np.allclose([vector(ada, id) for id in ids], model.encode(texts), atol=1e-5)


def test_sections_of_a_session(ada: httpx.Client, model: thalweg.Embedder) -> None:
    id = begin(ada, sections={"by": "paragraph"})
    text = LONG[:4000]
    found = []
    for start in range(0, len(text), 700):
        found += ada.post(f"{ROOT}/{id}/append", json={"text": text[start : start + 700]}).json()["sections"]
    found += ada.get(f"{ROOT}/{id}/sections").json()["sections"]
    expected = list(model.encode_sections(text, by="paragraph"))
    assert [(each["start"], each["end"]) for each in found] == [(each.char_start, each.char_end) for each in expected]
    assert np.allclose([each["vector"] for each in found], [each.vector for each in expected], atol=1e-5)
    again = begin(ada, sections={"by": "paragraph"})
    ended = ada.post(f"{ROOT}/{again}/append?encoding_format=base64", json={"text": text}).json()["sections"]
    for section, each in zip(ended, expected, strict=False):
        assert np.allclose(np.frombuffer(base64.b64decode(section["vector"]), "<f4"), each.vector, atol=1e-5)
    assert len(ended) == len(expected) - 1


def test_a_session_belongs_to_its_key(ada: httpx.Client, grace: httpx.Client, keyed: Running) -> None:
    id = begin(ada, text="secret")
    ada.post(f"{ROOT}/{id}/save", json={"name": "mine"})
    calls: list[tuple[str, str, Any]] = [
        ("GET", f"{ROOT}/{id}", None),
        ("GET", f"{ROOT}/{id}/vector", None),
        ("POST", f"{ROOT}/{id}/append", {"text": "a"}),
        ("POST", f"{ROOT}/{id}/fork", None),
        ("POST", f"{ROOT}/{id}/save", {"name": "stolen"}),
        ("DELETE", f"{ROOT}/{id}", None),
        ("DELETE", "/v1/thalweg/saved/mine", None),
        ("POST", ROOT, {"restore": "mine"}),
    ]
    for method, path, body in calls:
        stolen = grace.request(method, path, json=body)
        made_up = grace.request(method, path.replace(id, "A" * 22).replace("mine", "none"), json=body)
        assert stolen.status_code == made_up.status_code == 404, path
    assert grace.get(ROOT).json() == {"sessions": []}
    assert grace.get("/v1/thalweg/saved").json() == {"saved": []}
    assert ada.get(f"{ROOT}/{id}").status_code == 200


def test_save_and_restore(ada: httpx.Client, grace: httpx.Client, model: thalweg.Embedder, tmp_path: Path) -> None:
    id = begin(ada, text="The river ", normalize=False)
    assert ada.post(f"{ROOT}/{id}/save", json={"name": "a.b-c_1"}).json()["name"] == "a.b-c_1"
    ada.post(f"{ROOT}/{id}/append", json={"text": "floods."})
    again = begin(ada, restore="a.b-c_1", text="rises.")
    assert np.allclose(vector(ada, again), model.encode("The river rises.", normalize_embeddings=False), atol=1e-5)
    assert ada.get("/v1/thalweg/saved").json() == {"saved": ["a.b-c_1"]}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    (file,) = tmp_path.rglob("*.session")
    file.write_bytes(file.read_bytes()[:-3])
    damaged = ada.post(ROOT, json={"restore": "a.b-c_1"})
    assert damaged.status_code == 400
    assert str(tmp_path) not in damaged.text
    assert "the saved session 'a.b-c_1'" in damaged.text
    assert ada.delete("/v1/thalweg/saved/a.b-c_1").status_code == 204
    assert ada.get("/v1/thalweg/saved").json() == {"saved": []}


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".hidden", "a/b", "a\\b", "", "x" * 101, "/etc/passwd", "a\x00b", "naïve", "a b", "con:", "%2e%2e"],
)
def test_names_that_leave_the_folder(ada: httpx.Client, tmp_path: Path, name: str) -> None:
    id = begin(ada, text="a")
    assert ada.post(f"{ROOT}/{id}/save", json={"name": name}).status_code == 400
    assert ada.post(ROOT, json={"restore": name}).status_code == 400
    assert ada.delete(f"/v1/thalweg/saved/{quote(name or ' ', safe='')}").status_code in (400, 404)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_path_that_leaves_its_route(ada: httpx.Client, keyed: Running) -> None:
    with keyed.connect() as sock:
        sock.sendall(
            http_request("/v1/thalweg/saved/..%2f..%2fx", b"", "authorization: Bearer key-of-ada", method="DELETE")
        )
        assert sock.recv(20).split()[1] in (b"400", b"404")


def test_quotas(ada: httpx.Client, grace: httpx.Client) -> None:
    ids = [begin(ada) for _ in range(5)]
    full = ada.post(ROOT, json={})
    assert (full.status_code, "delete some" in full.text) == (409, True)
    assert ada.post(f"{ROOT}/{ids[0]}/fork").status_code == 409
    begin(grace)
    for n in range(5):
        assert ada.post(f"{ROOT}/{ids[0]}/save", json={"name": f"s{n}"}).status_code == 200
    assert ada.post(f"{ROOT}/{ids[0]}/save", json={"name": "s5"}).status_code == 409
    assert ada.post(f"{ROOT}/{ids[0]}/save", json={"name": "s4"}).status_code == 200
    ada.delete(f"{ROOT}/{ids[0]}")
    begin(ada)


def test_sessions_expire(model: thalweg.Embedder) -> None:
    with running({"tiny": model}, Settings(session_ttl=0.2)) as server, server.client() as client:
        id = begin(client, text="a")
        sessions = server.server.sessions(server.server.models[0])
        held = sessions.get("", id)
        held.used -= 1
        assert client.get(ROOT).status_code == 200
        sessions.expire()
        assert client.get(f"{ROOT}/{id}/vector").status_code == 404
        assert not len(sessions)


def test_a_failed_append_changes_nothing(ada: httpx.Client, model: thalweg.Embedder) -> None:
    id = begin(ada, text="The river")
    plain = {"content-type": "text/plain"}
    assert ada.post(f"{ROOT}/{id}/append", content=b"a\xff", headers=plain).status_code == 400
    assert np.allclose(vector(ada, id), model.encode("The river"), atol=1e-5)
    assert ada.post(f"{ROOT}/{id}/append", content="é".encode()[:1], headers=plain).json()["tokens"] is None
    assert ada.get(f"{ROOT}/{id}/vector").status_code == 400
    assert ada.post(f"{ROOT}/{id}/append", content="é".encode()[1:], headers=plain).status_code == 200
    assert np.allclose(vector(ada, id), model.encode("The riveré"), atol=1e-5)


def test_a_full_disk(ada: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    id = begin(ada, text="a")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("thalweg.storage.durable.os.fsync", full)
    found = ada.post(f"{ROOT}/{id}/save", json={"name": "a"})
    assert found.status_code == 507
    assert "No space left" in found.json()["error"]["message"]
    monkeypatch.undo()
    assert ada.post(f"{ROOT}/{id}/save", json={"name": "a"}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_name": "none"},
        {"dimensions": 99},
        {"model": "none"},
        {"restore": "none"},
        {"restore": "a", "normalize": True},
        {"sections": {"by": "chapter"}},
        {"sections": {"mode": "isolated"}},
        {"text": 5},
        {"ttl": 5},
    ],
    ids=json.dumps,
)
def test_sessions_that_cannot_begin(ada: httpx.Client, body: dict[str, Any]) -> None:
    found = ada.post(ROOT, json=body)
    assert found.status_code in (400, 404)
    assert found.json()["error"]["message"]
    assert ada.get(ROOT).json() == {"sessions": []}


def test_without_a_folder_nothing_is_saved(served: Running) -> None:
    with served.client() as client:
        id = begin(client, text="a")
        found = client.post(f"{ROOT}/{id}/save", json={"name": "a"})
        assert (found.status_code, "--session-folder" in found.text) == (400, True)
        assert client.get("/v1/thalweg/saved").status_code == 400


def test_prefixes(ada: httpx.Client, grace: httpx.Client, keyed: Running, model: thalweg.Embedder) -> None:
    """A key's own: another one's texts take as long as before, so that nobody learns what others have kept."""
    header = make_text(300, seed=5)
    texts = [header + f"Party number {n}." for n in range(5)]
    kept = ada.post("/v1/thalweg/prefixes", json={"text": header}).json()["tokens"]
    assert kept > 100
    states = keyed.server.models[0].prefixes.states
    for client, hits in ((ada, 5), (grace, 0)):
        before = states.hits
        found = client.post("/embed", json={"inputs": texts})
        assert np.allclose(found.json(), model.encode(texts), atol=1e-5)
        assert states.hits - before == hits
    assert ada.post("/v1/thalweg/prefixes", json={"text": "short"}).json()["tokens"] == 0
