"""The page at `/`: files of the folder `page`, read once."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.responses import Response

from thalweg.assets import book
from thalweg.serve.errors import RequestError
from thalweg.serve.http import Call, Handler

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}

HEADERS = {
    "cache-control": "no-cache",  # the ETag is compared each time, so that no page is older than its server
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

SAMPLE = "book.txt"
"""The name under which the shipped book can be had, for whoever has no long text at hand."""


class _File:
    """One file, and the headers of its answer."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        kind = TYPES["." + name.rpartition(".")[2]]
        self.headers = HEADERS | {"etag": self.tag, "content-type": f"{kind}; charset=utf-8"}

    def answer(self, known: str) -> Response:
        """known: the header If-None-Match."""
        if self.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def handlers() -> tuple[Handler, Handler]:
    """What answers `GET /`, and `GET /page/{name}`."""
    folder = files("thalweg.serve") / "page"
    found = {each.name: _File(each.name, each.read_bytes()) for each in folder.iterdir()}
    found[SAMPLE] = _File(SAMPLE, book().read_bytes())

    async def index(call: Call) -> Response:
        """`GET /`: the page."""
        return found["index.html"].answer(call.request.headers.get("if-none-match", ""))

    async def file(call: Call) -> Response:
        """`GET /page/{name}`: what the page consists of."""
        name = call.request.path_params["name"]
        if name not in found:
            raise RequestError("not_found", "Not Found")
        return found[name].answer(call.request.headers.get("if-none-match", ""))

    return index, file
