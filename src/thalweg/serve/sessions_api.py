"""`/v1/thalweg/sessions`, `/saved` and `/prefixes`: texts that grow, and what texts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from thalweg.embedder.results import Embedding
from thalweg.embedder.sections import Mode, Sections, Unit
from thalweg.serve.errors import RequestError
from thalweg.serve.http import Call, json_response
from thalweg.serve.model import ServedModel
from thalweg.serve.openai import Encoding
from thalweg.serve.sessions import Held, OwnedSessions
from thalweg.serve.thalweg_api import Count, media_type, query, shown
from thalweg.serve.uploads import PLAIN


class SectionsOf(msgspec.Struct, forbid_unknown_fields=True):
    """See `thalweg.Sections`; a text that grows has no look_ahead."""

    by: Unit = "tokens"
    every: Count | None = None
    mode: Mode | None = None


class BeginRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/thalweg/sessions`. restore: the name of a saved one, which has all but `model` itself."""

    model: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    sections: SectionsOf | None = None
    text: str | None = None
    restore: str | None = None


class AppendRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `…/append`, unless it is text/plain."""

    text: str


class SaveRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `…/save`."""

    name: str


class PrefixRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/thalweg/prefixes`."""

    text: str
    model: str | None = None


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What may be in the query."""

    encoding_format: Encoding = "float"


class ModelOption(msgspec.Struct, forbid_unknown_fields=True):
    """What may be in the query."""

    model: str | None = None


_BEGIN = msgspec.json.Decoder(BeginRequest)
_APPEND = msgspec.json.Decoder(AppendRequest)
_SAVE = msgspec.json.Decoder(SaveRequest)
_PREFIX = msgspec.json.Decoder(PrefixRequest)


def _find(call: Call) -> tuple[ServedModel, OwnedSessions, Held]:
    """The session that the path names.

    Raises:
        RequestError: 404, there is none of this key.
    """
    id = call.request.path_params["id"]
    for model in call.server.models:
        sessions = call.server.sessions(model)
        if sessions.has(call.owner, id):
            return model, sessions, sessions.get(call.owner, id)
    raise RequestError("not_found", "there is no such session; it may have expired")


async def _described(
    model: ServedModel,
    sessions: OwnedSessions,
    held: Held,
    ended: Sequence[Embedding] | None = None,
    encoding: Encoding = "float",
) -> dict[str, Any]:
    found = {
        "id": held.id,
        "model": model.name,
        "tokens": await sessions.tokens(held),
        "bytes": held.session.nbytes,
        "expires_in": round(sessions.expires_in(held), 1),
    }
    return found if ended is None else found | {"sections": _shown(ended, encoding)}


def _shown(sections: Sequence[Embedding], encoding: Encoding) -> list[dict[str, Any]]:
    return [
        {
            "section": each.section,
            "start": each.char_start,
            "end": each.char_end,
            "tokens": each.n_tokens,
            "vector": shown(each.vector, encoding),
        }
        for each in sections
    ]


async def begin(call: Call) -> Response:
    """`POST /v1/thalweg/sessions`: begin a session, or restore a saved one."""
    asked = await call.json(_BEGIN)
    model = call.model(asked.model)
    sessions = call.server.sessions(model)
    if asked.restore is not None:
        others = (asked.prompt, asked.prompt_name, asked.normalize, asked.dimensions, asked.sections)
        if any(each is not None for each in others):
            raise RequestError("invalid", "a session that is restored has its own prompt and settings", param="restore")
        held = await call.unless_gone(sessions.restore(call.owner, asked.restore))
    else:
        wish = call.wish(
            model,
            prompt=asked.prompt,
            prompt_name=asked.prompt_name,
            normalize=asked.normalize,
            dimensions=asked.dimensions,
        )
        cut = None if asked.sections is None else Sections(asked.sections.by, asked.sections.every, asked.sections.mode)
        held = await call.unless_gone(sessions.begin(call.owner, wish, cut))
    ended = None
    if asked.text is not None:
        try:
            ended = await _append(call, model, sessions, held, asked.text)
        except BaseException:
            sessions.delete(held)
            raise
    return json_response(await _described(model, sessions, held, ended), 201)


async def _append(
    call: Call, model: ServedModel, sessions: OwnedSessions, held: Held, text: str | bytes
) -> list[Embedding] | None:
    """The sections that have ended; None where the session has none.

    The text is counted as those of other requests are. What has begun is carried on if the client goes.
    """
    n_tokens = model.estimate(text)

    async def append() -> list[Embedding]:
        with model.admission.held(await model.admission.enter(call.client, n_tokens, 1)):
            return await sessions.append(held, text)

    ended = await call.unless_gone(append())
    call.texts, call.tokens = 1, n_tokens
    return None if held.session.settings.sections is None else ended


async def list_all(call: Call) -> Response:
    """`GET /v1/thalweg/sessions`: the sessions of this key."""
    of_models = [(model, call.server.sessions(model)) for model in call.server.models]
    found = [
        {"id": held.id, "model": model.name, "expires_in": round(sessions.expires_in(held), 1)}
        for model, sessions in of_models
        for held in sessions.of(call.owner)
    ]
    return json_response({"sessions": found})


async def describe(call: Call) -> Response:
    """`GET /v1/thalweg/sessions/{id}`: a session."""
    return json_response(await _described(*_find(call)))


async def append(call: Call) -> Response:
    """`POST /v1/thalweg/sessions/{id}/append`: read on; JSON, or text/plain cut anywhere."""
    model, sessions, held = _find(call)
    asked = query(call.request, Options)
    kind = media_type(call.request)
    if kind not in (PLAIN, "application/json"):
        raise RequestError("unsupported", f"Content-Type must be application/json or {PLAIN}")
    text: str | bytes = await call.body() if kind == PLAIN else (await call.json(_APPEND)).text
    ended = await _append(call, model, sessions, held, text)
    return json_response(await _described(model, sessions, held, ended, asked.encoding_format))


async def vector(call: Call) -> Response:
    """`GET /v1/thalweg/sessions/{id}/vector`: the vector of the text as if it ended here."""
    model, sessions, held = _find(call)
    asked = query(call.request, Options)
    tokens, found = await call.unless_gone(sessions.vector(held))
    return json_response(
        {"id": held.id, "model": model.name, "tokens": tokens, "vector": shown(found, asked.encoding_format)}
    )


async def open_sections(call: Call) -> Response:
    """`GET /v1/thalweg/sessions/{id}/sections`: those that have not ended, as if the text ended here."""
    model, sessions, held = _find(call)
    asked = query(call.request, Options)
    found = await call.unless_gone(sessions.sections(held))
    return json_response({"id": held.id, "model": model.name, "sections": _shown(found, asked.encoding_format)})


async def fork(call: Call) -> Response:
    """`POST /v1/thalweg/sessions/{id}/fork`: another session at the same point."""
    model, sessions, held = _find(call)
    return json_response(await _described(model, sessions, await sessions.fork(held)), 201)


async def save(call: Call) -> Response:
    """`POST /v1/thalweg/sessions/{id}/save`: write a session to a file that survives the server."""
    _, sessions, held = _find(call)
    asked = await call.json(_SAVE)
    await sessions.save(held, asked.name)
    return json_response({"id": held.id, "name": asked.name})


async def delete(call: Call) -> Response:
    """`DELETE /v1/thalweg/sessions/{id}`: forget a session."""
    _, sessions, held = _find(call)
    sessions.delete(held)
    return Response(status_code=204)


async def list_saved(call: Call) -> Response:
    """`GET /v1/thalweg/saved`: the names of this key's saved sessions."""
    model = call.model(query(call.request, ModelOption).model)
    return json_response({"saved": await call.server.sessions(model).saved(call.owner)})


async def delete_saved(call: Call) -> Response:
    """`DELETE /v1/thalweg/saved/{name}`: remove a saved session."""
    sessions = call.server.sessions(call.model(query(call.request, ModelOption).model))
    await sessions.delete_saved(call.owner, call.request.path_params["name"])
    return Response(status_code=204)


async def keep_prefix(call: Call) -> Response:
    """`POST /v1/thalweg/prefixes`: run what later texts of this key begin with; how many tokens they are spared."""
    asked = await call.json(_PREFIX)
    model = call.model(asked.model)
    prefixes = model.prefixes_of(call.wish(model, prompt=""))
    n_tokens = model.estimate(asked.text)

    async def keep() -> int:
        with model.admission.held(await model.admission.enter(call.client, n_tokens, 1)):
            return await call.server.in_session_pool(lambda: prefixes.keep(model.embedder.tokenizer, asked.text))

    tokens = await call.unless_gone(keep())
    call.texts, call.tokens = 1, tokens
    return json_response({"model": model.name, "tokens": tokens})
