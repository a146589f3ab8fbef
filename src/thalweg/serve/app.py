"""The routes of a server."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from thalweg.serve import openai, sessions_api, tei, thalweg_api, web_page
from thalweg.serve.errors import Interface, RequestError
from thalweg.serve.http import JSON, Handler, PlainRoute, endpoint
from thalweg.serve.schema import components, operation
from thalweg.serve.server import Server
from thalweg.serve.uploads import EVENTS, NDJSON, PLAIN, StreamHandler, stream_endpoint
from thalweg.version import __version__

OURS = "/v1/thalweg"
SESSION = f"{OURS}/sessions/{{id}}"


class Route(NamedTuple):
    """One route.

    body, query: what it takes as JSON, and in the query; public: see `endpoint`; streamed: the kinds of bodies that are
    embedded while they arrive, in a route whose answer leaves in parts; others: further kinds of bodies; status, media:
    of its answer; described: it is part of the API.
    """

    method: str
    path: str
    handler: Handler | StreamHandler
    interface: Interface
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    public: bool = False
    streamed: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    status: int = 200
    media: str | None = JSON
    described: bool = True


_INDEX, _FILE = web_page.handlers()

ROUTES = (
    Route("POST", "/v1/embeddings", openai.embeddings, "openai", openai.EmbeddingsRequest),
    Route("GET", "/v1/models", openai.models, "openai"),
    Route("GET", "/v1/models/{id:path}", openai.one_model, "openai"),
    Route("POST", "/embed", tei.embed, "tei", tei.EmbedRequest),
    Route("POST", "/", tei.embed, "tei", tei.EmbedRequest),
    Route("POST", "/embed_all", tei.embed_all, "tei", tei.EmbedAllRequest),
    Route("POST", "/similarity", tei.similarity, "tei", tei.SimilarityRequest),
    Route("POST", "/tokenize", tei.tokenize, "tei", tei.TokenizeRequest),
    Route("POST", "/decode", tei.decode, "tei", tei.DecodeRequest),
    Route("GET", "/info", tei.info, "tei"),
    Route("GET", "/metrics", tei.metrics, "tei", media=PLAIN),
    Route(
        "POST",
        f"{OURS}/embed",
        thalweg_api.embed,
        "openai",
        thalweg_api.EmbedRequest,
        thalweg_api.VectorOptions,
        streamed=(PLAIN, NDJSON),
    ),
    Route(
        "POST",
        f"{OURS}/sections",
        thalweg_api.sections,
        "openai",
        thalweg_api.SectionsRequest,
        thalweg_api.SectionOptions,
        streamed=(PLAIN,),
        media=NDJSON,
    ),
    Route(
        "POST",
        f"{OURS}/stream",
        thalweg_api.stream,
        "openai",
        thalweg_api.StreamRequest,
        thalweg_api.StreamOptions,
        streamed=(PLAIN,),
        media=EVENTS,
    ),
    Route("POST", f"{OURS}/sessions", sessions_api.begin, "openai", sessions_api.BeginRequest, status=201),
    Route("GET", f"{OURS}/sessions", sessions_api.list_all, "openai"),
    Route("GET", f"{SESSION}", sessions_api.describe, "openai"),
    Route("DELETE", f"{SESSION}", sessions_api.delete, "openai", status=204, media=None),
    Route(
        "POST",
        f"{SESSION}/append",
        sessions_api.append,
        "openai",
        sessions_api.AppendRequest,
        sessions_api.Options,
        others=(PLAIN,),
    ),
    Route("GET", f"{SESSION}/vector", sessions_api.vector, "openai", query=sessions_api.Options),
    Route("GET", f"{SESSION}/sections", sessions_api.open_sections, "openai", query=sessions_api.Options),
    Route("POST", f"{SESSION}/fork", sessions_api.fork, "openai", status=201),
    Route("POST", f"{SESSION}/save", sessions_api.save, "openai", sessions_api.SaveRequest),
    Route("GET", f"{OURS}/saved", sessions_api.list_saved, "openai", query=sessions_api.ModelOption),
    Route(
        "DELETE",
        f"{OURS}/saved/{{name}}",
        sessions_api.delete_saved,
        "openai",
        query=sessions_api.ModelOption,
        status=204,
        media=None,
    ),
    Route("POST", f"{OURS}/prefixes", sessions_api.keep_prefix, "openai", sessions_api.PrefixRequest),
    Route("GET", "/health", tei.health, "tei", public=True, media=None),
    Route("GET", "/ping", tei.health, "tei", public=True, media=None),
    Route("GET", "/ready", tei.ready, "tei", public=True, media=None),
    Route("GET", "/", _INDEX, "tei", public=True, described=False),
    Route("GET", "/page/{name}", _FILE, "tei", public=True, described=False),
)


def make_app(server: Server) -> FastAPI:
    """The ASGI application of a server. Whoever runs it closes the server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(
        title="thalweg",
        version=__version__,
        description="Embeddings of texts of any length. Nothing is cut.",
        lifespan=lifespan,
        redoc_url=None,
    )
    structs = list(dict.fromkeys(route.body for route in ROUTES if route.body is not None))
    for route in ROUTES:
        app.router.add_api_route(
            route.path,
            _endpoint(server, route),
            methods=[route.method],
            name=f"{route.method} {route.path}",
            summary=(route.handler.__doc__ or "").strip().splitlines()[0],
            status_code=route.status,
            response_model=None,
            response_class=Response,
            include_in_schema=route.described,
            openapi_extra=operation(
                route.path,
                route.interface,
                body=route.body,
                query=route.query,
                others=(*route.streamed, *route.others),
                answers={route.status: route.media},
                public=route.public,
                has_keys=bool(server.keys),
                structs=structs,
            ),
            route_class_override=PlainRoute,
        )
    app.openapi = functools.cache(_with_components(app.openapi, components(structs)))  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _as_error)  # type: ignore[arg-type]
    if server.settings.cors_allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.settings.cors_allow_origin),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


def _endpoint(server: Server, route: Route) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    if route.streamed:
        return stream_endpoint(server, route.path, cast("StreamHandler", route.handler))
    return endpoint(server, route.interface, route.path, cast("Handler", route.handler), public=route.public)


def _with_components(openapi: Callable[[], dict[str, Any]], schemas: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    def whole() -> dict[str, Any]:
        page = openapi()
        parts = page.setdefault("components", {})
        parts.setdefault("schemas", {}).update(schemas)
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return page

    return whole


def _as_error(request: Request, error: HTTPException) -> Response:
    """A path or method that there is not, in the shape of its interface."""
    interface: Interface = "openai" if request.url.path.startswith("/v1/") else "tei"
    response = RequestError("not_found", str(error.detail), status=error.status_code).response(interface)
    response.headers.update(error.headers or {})
    return response
