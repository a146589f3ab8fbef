"""The interface of text-embeddings-inference."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from thalweg.pooling.vectors import FloatArray
from thalweg.serve.errors import RequestError
from thalweg.serve.http import Call, json_response
from thalweg.serve.inputs import Inputs, Token, texts_of
from thalweg.serve.metrics import CONTENT_TYPE
from thalweg.version import __version__

MOST_HIDDEN = 1 << 13
"""Tokens of a request whose hidden vectors are all asked for."""

NO_LIMIT = 2**31 - 1
"""What `/info` says of lengths, which its clients expect to be a number."""


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/embed`. Nothing is ever cut, so `truncate` has nothing to do. `model` is ours."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = True
    dimensions: int | None = None
    model: str | None = None


class EmbedAllRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/embed_all`."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    model: str | None = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class DecodeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/decode`."""

    ids: list[Token | list[Token]]
    skip_special_tokens: bool = True
    model: str | None = None


class Comparison(msgspec.Struct, forbid_unknown_fields=True):
    """What `/similarity` compares."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct, forbid_unknown_fields=True):
    """As in `/embed`."""

    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/similarity`."""

    inputs: Comparison
    parameters: SimilarityParameters | None = None
    model: str | None = None


_EMBED = msgspec.json.Decoder(EmbedRequest)
_EMBED_ALL = msgspec.json.Decoder(EmbedAllRequest)
_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DECODE = msgspec.json.Decoder(DecodeRequest)
_SIMILARITY = msgspec.json.Decoder(SimilarityRequest)


async def embed(call: Call) -> Response:
    """`POST /embed`, and `POST /`."""
    began = time.perf_counter()
    asked = await call.json(_EMBED)
    model = call.model(asked.model)
    texts = texts_of(asked.inputs, "inputs", call.server.settings.max_client_batch_size)
    normalize = True if asked.normalize is None else asked.normalize
    wish = call.wish(model, prompt_name=asked.prompt_name, normalize=normalize, dimensions=asked.dimensions)
    call.expect(len(texts), model, asked.dimensions)
    inputs = [text if isinstance(text, str) else model.whole_ids(text, wish.prompt) for text in texts]
    vectors, tokens = await call.unless_gone(model.embed(inputs, wish))
    call.texts, call.tokens = len(texts), tokens
    headers = {
        "x-compute-characters": str(sum(len(text) for text in texts if isinstance(text, str))),
        "x-compute-tokens": str(tokens),
        "x-total-time": str(round(1000 * (time.perf_counter() - began))),
    }
    return json_response(vectors, headers=headers)


async def embed_all(call: Call) -> Response:
    """`POST /embed_all`: the hidden vector of each token."""
    asked = await call.json(_EMBED_ALL)
    model = call.model(asked.model)
    texts = texts_of(asked.inputs, "inputs", call.server.settings.max_client_batch_size)
    wish = call.wish(model, prompt_name=asked.prompt_name)
    if sum(model.estimate(text) if isinstance(text, str) else len(text) for text in texts) > 2 * MOST_HIDDEN:
        raise _too_many_tokens()

    async def all_hidden() -> list[FloatArray]:
        ids = await model.ids_of(texts, wish.prompt)
        total = sum(map(len, ids))
        if total > MOST_HIDDEN:
            raise _too_many_tokens()
        call.expect(total, model, model.embedder.model.d_model)
        call.texts, call.tokens = len(texts), total
        ticket = await model.admission.enter(call.client, total, len(ids))
        with model.admission.held(ticket):
            return [await model.hidden(each) for each in ids]

    return json_response(await call.unless_gone(all_hidden()))


def _too_many_tokens() -> RequestError:
    return RequestError("too_many", f"the texts of one request may have {MOST_HIDDEN:,} tokens here", param="inputs")


async def similarity(call: Call) -> Response:
    """`POST /similarity`."""
    asked = await call.json(_SIMILARITY)
    model = call.model(asked.model)
    sentences = asked.inputs.sentences
    if not sentences:
        raise RequestError("empty", "`inputs.sentences` cannot be empty", param="inputs")
    texts = texts_of([asked.inputs.source_sentence, *sentences], "inputs", call.server.settings.max_client_batch_size)
    wish = call.wish(model, prompt_name=asked.parameters.prompt_name if asked.parameters else None)
    vectors, tokens = await call.unless_gone(model.embed(texts, wish))  # type: ignore[arg-type]
    call.texts, call.tokens = len(texts), tokens
    return json_response(model.embedder.similarity(vectors[:1], vectors[1:])[0])


async def tokenize(call: Call) -> Response:
    """`POST /tokenize`."""
    asked = await call.json(_TOKENIZE)
    model = call.model(asked.model)
    texts = texts_of(asked.inputs, "inputs", call.server.settings.max_client_batch_size)  # type: ignore[arg-type]
    prompt = model.prompt("", None) if asked.prompt_name is None else model.prompt(None, asked.prompt_name)

    def described() -> list[list[dict[str, Any]]]:
        return [_tokens(model, prompt, str(text), special=asked.add_special_tokens) for text in texts]

    return json_response(await call.in_pool(described))


def _tokens(model: Any, prompt: str, text: str, *, special: bool) -> list[dict[str, Any]]:
    """The tokens of a text, with the characters [start, stop) of prompt and text behind each."""
    tokenizer = model.embedder.tokenizer
    whole = prompt + text
    ids, offsets, _ = tokenizer.stream(whole, with_offsets=True).take_with_offsets(NO_LIMIT)
    n_first, n_last = len(tokenizer.prefix), len(tokenizer.suffix)
    found = []
    for place, (token, (start, stop)) in enumerate(zip(ids.tolist(), offsets.tolist(), strict=True)):
        if place < n_first or place >= len(ids) - n_last:
            if special:
                text = tokenizer.decode([token], skip_special_tokens=False)
                found.append({"id": token, "text": text, "special": True, "start": None, "stop": None})
        else:
            found.append({"id": token, "text": whole[start:stop], "special": False, "start": start, "stop": stop})
    return found


async def decode(call: Call) -> Response:
    """`POST /decode`."""
    asked = await call.json(_DECODE)
    model = call.model(asked.model)
    texts = texts_of(asked.ids, "ids", call.server.settings.max_client_batch_size)  # type: ignore[arg-type]
    tokenizer = model.embedder.tokenizer

    def decoded() -> list[str]:
        return [
            tokenizer.decode(ids, skip_special_tokens=asked.skip_special_tokens)
            for ids in texts
            if not isinstance(ids, str)
        ]

    return json_response(await call.in_pool(decoded))


async def info(call: Call) -> Response:
    """`GET /info`."""
    settings, model = call.server.settings, call.model(None)
    embedder, schedule = model.embedder, model.thread.engine.schedule
    pooling = {"mean": "mean", "last": "last_token"}.get(embedder.embedding_config.pooling)
    return json_response(
        {
            "model_id": model.name,
            "model_sha": embedder.fingerprint,
            "model_dtype": str(embedder.dtype).removeprefix("torch."),
            "served_model_name": model.name,
            "model_type": {"embedding": {"pooling": pooling or embedder.embedding_config.pooling}},
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": NO_LIMIT,
            "max_batch_tokens": schedule.max_tokens_per_step,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": False,
            "tokenization_workers": call.server.n_tokenizers,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def health(call: Call) -> Response:
    """`GET /health`, `/ping`: whether the engines run."""
    call.server.check_health()
    return Response()


async def ready(call: Call) -> Response:
    """`GET /ready`: whether requests are taken in; not while the server ends."""
    call.server.check_ready()
    return Response()


async def metrics(call: Call) -> Response:
    """`GET /metrics`."""
    return Response(call.server.metrics.text(), media_type=CONTENT_TYPE)
