"""`/v1/thalweg/`: what neither of the other interfaces has. Texts of any length, embedded while they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request

from thalweg.embedder.sections import Mode, Sections, Unit
from thalweg.pooling.vectors import FloatArray
from thalweg.serve.bodies import parse, read_body, too_large
from thalweg.serve.errors import RequestError, as_request_error
from thalweg.serve.http import Call, json_response
from thalweg.serve.model import ServedModel, Wish
from thalweg.serve.openai import Encoding, encoded
from thalweg.serve.streamed_text import Found, embed_stream
from thalweg.serve.uploads import EVENTS, NDJSON, PLAIN, StreamCall

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=1)]

AT_ONCE = 64
"""Lines of an upload that are in the engine at a time."""


class VectorOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a vector is to be. Of a streamed body these are in the query."""

    model: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    encoding_format: Encoding = "float"
    user: str | None = None


class EmbedRequest(VectorOptions, kw_only=True):
    """The body of `/v1/thalweg/embed`."""

    text: str


class SectionOptions(VectorOptions, kw_only=True):
    """See `thalweg.Sections`."""

    by: Unit = "tokens"
    every: Count | None = None
    mode: Mode | None = None
    look_ahead: Annotated[int, msgspec.Meta(ge=0)] = 0


class SectionsRequest(SectionOptions, kw_only=True):
    """The body of `/v1/thalweg/sections`; `boundaries` are the characters at which sections end, instead of `by`."""

    text: str
    boundaries: list[Count] | None = None


class StreamOptions(VectorOptions, kw_only=True):
    """A vector of the text so far after every so many tokens."""

    every: Count = 512


class StreamRequest(StreamOptions, kw_only=True):
    """The body of `/v1/thalweg/stream`."""

    text: str


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a body of many texts."""

    text: str
    id: str | int | None = None


_EMBED = msgspec.json.Decoder(EmbedRequest)
_SECTIONS = msgspec.json.Decoder(SectionsRequest)
_STREAM = msgspec.json.Decoder(StreamRequest)
_LINE = msgspec.json.Decoder(Line)


def query(request: Request, kind: type[T]) -> T:
    """The options in the query of a URL.

    Raises:
        RequestError: one that there is not, or a value that cannot be.
    """
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise RequestError("invalid", f"the query has {name[:80]!r} twice", param=name[:80])
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError("invalid", f"{error} in the query") from None


def media_type(request: Request) -> str:
    """What a body is said to be; JSON where nothing is said.

    Raises:
        RequestError: text in another encoding than UTF-8.
    """
    kind, _, rest = request.headers.get("content-type", "application/json").partition(";")
    for parameter in rest.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            raise RequestError("unsupported", f"the body must be UTF-8, not {value[:40]!r}")
    return kind.strip().lower()


def _unsupported(*kinds: str) -> RequestError:
    return RequestError("unsupported", f"Content-Type must be {' or '.join(kinds)}")


async def _asked(
    call: StreamCall, decoder: msgspec.json.Decoder[T], options: type[Any], *others: str
) -> tuple[T | Any, str | None]:
    """What is asked for, and the text; None: the body is the text."""
    kind = media_type(call.request)
    if kind == "application/json":
        settings = call.server.settings
        body = await read_body(call.request, settings.payload_limit, settings.body_timeout, call.lease)
        asked = await parse(body, decoder)
        return asked, asked.text  # type: ignore[attr-defined]
    if kind != PLAIN and kind not in others:
        raise _unsupported("application/json", PLAIN, *others)
    return query(call.request, options), None


def _wish(call: Call, asked: VectorOptions) -> tuple[ServedModel, Wish]:
    model = call.model(asked.model)
    call.is_user(asked.user)
    return model, call.wish(
        model,
        prompt=asked.prompt,
        prompt_name=asked.prompt_name,
        normalize=asked.normalize,
        dimensions=asked.dimensions,
    )


def shown(vector: FloatArray, encoding: Encoding) -> Any:
    """A vector as it is asked for."""
    return encoded(vector) if encoding == "base64" else vector


# -- one vector of a text, and of many ---------------------------------------------------------------------------------


async def embed(call: StreamCall) -> None:
    """`POST /v1/thalweg/embed`: one text (JSON or text/plain), or one a line (NDJSON)."""
    asked, text = await _asked(call, _EMBED, VectorOptions, NDJSON)
    model, wish = _wish(call, asked)
    if media_type(call.request) == NDJSON:
        await _embed_lines(call, model, wish, asked.encoding_format)
        return
    async with aclosing(embed_stream(call, model, text, wish, None)) as found:
        async for last in found:
            call.tokens, call.texts = last.stop, 1
            content = {"model": model.name, "tokens": last.stop, "vector": shown(last.vector, asked.encoding_format)}
    await call.answer(json_response(content))


async def _embed_lines(call: StreamCall, model: ServedModel, wish: Wish, encoding: Encoding) -> None:
    """An answer line for each line, as they are ready: {"index", "id", "tokens", "vector"}, or "error" instead."""
    await call.begin(NDJSON)
    room = asyncio.Semaphore(AT_ONCE)
    answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def one(index: int, line: bytes) -> None:
        answer: dict[str, Any] = {"index": index}
        try:
            asked = await parse(line, _LINE)
            answer["id"] = asked.id
            vectors, tokens = await model.embed([asked.text], wish, patient=True)
            answer |= {"tokens": tokens, "vector": shown(vectors[0], encoding)}
            call.tokens += tokens
        except Exception as error:
            answer |= as_request_error(error).body("openai")
        finally:
            call.lease.give_back(len(line))
        answers.put_nowait(answer)

    async def read() -> None:
        try:
            index = 0
            async for line in _lines(call):
                await room.acquire()
                task = asyncio.ensure_future(one(index, line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                index += 1
            while tasks:
                await asyncio.wait(set(tasks))
        finally:
            answers.put_nowait(None)

    reading = asyncio.ensure_future(read())
    try:
        while (answer := await answers.get()) is not None:
            call.texts += 1
            await call.write(answer)
            room.release()
        await reading
    finally:
        for task in (reading, *tasks):
            task.cancel()
    await call.write({"done": True, "model": model.name, "texts": call.texts, "tokens": call.tokens}, "done")
    await call.end()


async def _lines(call: StreamCall) -> AsyncGenerator[bytes, None]:
    """The lines of a body that are not blank, each within the limit of a body."""
    limit = call.server.settings.payload_limit
    rest = b""
    async with aclosing(call.pieces()) as pieces:
        async for piece in pieces:
            call.lease.take(len(piece))
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                call.lease.give_back(1)
                if line.strip():
                    yield line
                else:
                    call.lease.give_back(len(line))
            if len(rest) > limit:
                raise too_large(limit)
    if rest.strip():
        yield rest


# -- sections ----------------------------------------------------------------------------------------------------------


async def sections(call: StreamCall) -> None:
    """`POST /v1/thalweg/sections`: a line for each section of a text, as they are ready, and one at the end."""
    asked, text = await _asked(call, _SECTIONS, SectionOptions)
    model, wish = _wish(call, asked)
    boundaries = getattr(asked, "boundaries", None)
    cut = Sections(asked.by if boundaries is None else boundaries, asked.every, asked.mode, asked.look_ahead)
    if cut.mode == "isolated":
        raise RequestError("invalid", "mode 'isolated' is not served; send the sections as texts", param="mode")
    last: Found | None = None
    async with aclosing(embed_stream(call, model, text, wish, cut)) as found:
        async for each in found:
            if last is None:
                await call.begin(NDJSON)
            last = each
            await call.write(
                {
                    "section": each.section,
                    "start": each.chars[0],
                    "end": each.chars[1],
                    "tokens": each.stop - each.start,
                    "vector": shown(each.vector, asked.encoding_format),
                }
            )
    assert last is not None
    call.tokens, call.texts = last.stop, 1
    done = {"sections": last.section + 1, "tokens": last.stop, "characters": last.chars[1]}
    await call.write({"done": True, "model": model.name, **done}, "done")
    await call.end()


async def stream(call: StreamCall) -> None:
    """`POST /v1/thalweg/stream`: an event with the vector of the text so far after every so many tokens."""
    asked, text = await _asked(call, _STREAM, StreamOptions)
    model, wish = _wish(call, asked)
    await call.begin(EVENTS)
    tokens = 0
    async with aclosing(embed_stream(call, model, text, wish, Sections(every=asked.every, mode="prefix"))) as found:
        async for each in found:
            tokens = each.stop
            await call.write({"tokens": tokens, "vector": shown(each.vector, asked.encoding_format)})
    call.tokens, call.texts = tokens, 1
    await call.write({"model": model.name, "tokens": tokens}, "done")
    await call.end()
