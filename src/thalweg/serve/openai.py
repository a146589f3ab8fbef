"""OpenAI's interface: `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from thalweg.pooling.vectors import FloatArray
from thalweg.serve.errors import RequestError
from thalweg.serve.http import Call, json_response
from thalweg.serve.inputs import Inputs, texts_of

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/embeddings`; `prompt_name` is ours."""

    input: Inputs
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Encoding | None = None
    user: str | None = None
    prompt_name: str | None = None


_DECODER = msgspec.json.Decoder(EmbeddingsRequest)


async def embeddings(call: Call) -> Response:
    """`POST /v1/embeddings`."""
    asked = await call.json(_DECODER)
    model = call.model(asked.model)
    texts = texts_of(asked.input, "input", call.server.settings.max_client_batch_size)
    call.is_user(asked.user)
    wish = call.wish(model, prompt_name=asked.prompt_name, dimensions=asked.dimensions)
    call.expect(len(texts), model, asked.dimensions, asked.encoding_format or "float")
    inputs = [text if isinstance(text, str) else model.whole_ids(text, wish.prompt) for text in texts]
    vectors, tokens = await call.unless_gone(model.embed(inputs, wish))
    call.texts, call.tokens = len(texts), tokens
    as_base64 = asked.encoding_format == "base64"
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encoded(vector) if as_base64 else vector}
                for index, vector in enumerate(vectors)
            ],
            "model": asked.model or model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def encoded(vector: FloatArray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4", copy=False).data).decode("ascii")


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    return json_response({"object": "list", "data": [_described(call, name) for name in call.server.names]})


async def one_model(call: Call) -> Response:
    """`GET /v1/models/{id}`."""
    name = call.request.path_params["id"]
    if name not in call.server.names:
        raise RequestError("unknown_model", f"there is no model {name[:200]!r}", param="model")
    return json_response(_described(call, name))


def _described(call: Call, name: str) -> dict[str, Any]:
    model = call.model(name)
    embedder = model.embedder
    return {
        "id": name,
        "object": "model",
        "created": call.server.started,
        "owned_by": "thalweg",
        "root": model.name,
        "dimensions": embedder.dimension,
        "fingerprint": embedder.fingerprint,
        "prompts": sorted(embedder.prompts),
        "similarity": embedder.embedding_config.similarity,
    }
