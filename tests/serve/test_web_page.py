"""The files of the page at `/`, and their headers. tests/serve/test_page.py opens it in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.serve.running import Running, running
from thalweg.assets import book
from thalweg.serve import web_page

FOLDER = Path(web_page.__file__).parent / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())


def test_the_page(served: Running) -> None:
    with served.client() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["x-content-type-options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert policy.items() >= {
            "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
            "img-src": "'self' data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        }.items()  # fmt: skip
        assert page.content == (FOLDER / "index.html").read_bytes()
        assert client.post("/", json={"inputs": "the river"}).json() == client.post(
            "/embed", json={"inputs": "the river"}
        ).json()  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "book.txt"])
def test_files(served: Running, name: str) -> None:
    with served.client() as client:
        found = client.get(f"/page/{name}")
        assert found.status_code == 200
        assert found.content == (book() if name == "book.txt" else FOLDER / name).read_bytes()
        tag = found.headers["etag"]
        for known in (tag, f'"x", W/{tag}'):
            again = client.get(f"/page/{name}", headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(f"/page/{name}", headers={"if-none-match": '"x"'}).status_code == 200


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "../app.py", "", "page.js%00", "x/page.js"])
def test_there_are_no_others(served: Running, name: str) -> None:
    with served.client() as client:
        assert client.get(f"/page/{name}").status_code == 404


def test_it_needs_no_key_and_is_not_of_the_api(served: Running) -> None:
    with running({"tiny": served.embedder}, keys={"ada": "key-of-ada"}) as server, server.client() as client:
        assert client.get("/").status_code == client.get("/page/page.js").status_code == 200
        assert client.get("/v1/models").status_code == 401
        paths = client.get("/openapi.json").json()["paths"]
        assert "/page/{name}" not in paths
        assert set(paths["/"]) == {"post"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_inline_or_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"""url\(|@import|@font-face|<style|\sstyle=|\son\w+="|innerHTML|eval\(""", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text)


def test_what_the_page_asks_the_server_for(served: Running) -> None:
    with served.client() as client:
        assert re.search(r"^process_resident_memory_bytes \S+$", client.get("/metrics").text, re.MULTILINE)
        assert client.get("/v1/models").json()["data"][0]["similarity"] == "cosine"
