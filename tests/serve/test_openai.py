"""OpenAI's interface, with its own client and with bare requests."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running

TEXTS = ["the river", "", "boats drift slowly past grey stones", LONG, "naïve façade 🦢", make_text(1500, seed=3)]


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(served: Running, **body: Any) -> Any:
    with served.client() as client:
        return client.post("/v1/embeddings", json=body)


def vectors_of(response: Any) -> Any:
    return np.array([each["embedding"] for each in response.json()["data"]])


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_are_those_of_encode(served: Running, client: openai.OpenAI, encoding: Any) -> None:
    settings = {} if encoding is None else {"encoding_format": encoding}
    found = client.embeddings.create(model="tiny", input=TEXTS, **settings)
    given = [each.embedding for each in found.data]
    if encoding == "base64":
        given = [np.frombuffer(base64.b64decode(str(each)), dtype="<f4") for each in given]
    assert np.allclose(np.array(given), served.embedder.encode(TEXTS), atol=1e-5)
    assert [each.index for each in found.data] == list(range(len(TEXTS)))
    exact = sum(map(len, served.embedder.tokenize(TEXTS)))
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (exact, exact)
    assert found.model == "tiny"


def test_one_text(served: Running, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input="the river")
    assert np.allclose(found.data[0].embedding, served.embedder.encode("the river"), atol=1e-5)


def test_the_other_model(served: Running, client: openai.OpenAI, last_model: Any) -> None:
    found = client.embeddings.create(model="last", input=TEXTS)
    assert np.allclose([each.embedding for each in found.data], last_model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 7, 32])
def test_dimensions(served: Running, client: openai.OpenAI, dimensions: int) -> None:
    found = client.embeddings.create(model="tiny", input=TEXTS, dimensions=dimensions)
    expected = served.embedder.encode(TEXTS, truncate_dim=dimensions)
    assert np.allclose([each.embedding for each in found.data], expected, atol=1e-5)


def test_token_ids_stand_for_their_text(served: Running, client: openai.OpenAI) -> None:
    """With the special tokens of `/tokenize`, and without."""
    whole = [ids.tolist() for ids in served.embedder.tokenize(["the river", "grey stones"])]
    bare = [ids[:-1] for ids in whole]
    expected = served.embedder.encode(["the river", "grey stones"])
    for ids in (whole, bare):
        found = client.embeddings.create(model="tiny", input=ids)
        assert np.allclose([each.embedding for each in found.data], expected, atol=1e-5)
    one = client.embeddings.create(model="tiny", input=bare[0])
    assert np.allclose(one.data[0].embedding, expected[0], atol=1e-5)
    assert one.usage.prompt_tokens == len(whole[0])
    mixed = post(served, input=["the river", bare[1]])
    assert np.allclose(vectors_of(mixed), expected, atol=1e-5)


@pytest.mark.parametrize("texts", [["the river"], ["the river", "boats"] * 9, [LONG]])
def test_prompts(served: Running, texts: list[str]) -> None:
    """Twice: the second time its state is kept."""
    for _ in range(2):
        found = vectors_of(post(served, input=texts, prompt_name="query"))
        assert np.allclose(found, served.embedder.encode(texts, prompt_name="query"), atol=1e-5)
    assert served.server.models[0].prefixes.states.hits


def test_models(served: Running, client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["tiny", "last"]
    assert client.models.retrieve("last").id == "last"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other', but 'tiny', 'last'") as unknown:
        client.embeddings.create(model="other", input="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="dimensions must be") as wide:
        client.embeddings.create(model="tiny", input="a", dimensions=33)
    assert wide.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="cannot be empty"):
        client.embeddings.create(model="tiny", input=[])


BAD: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "no JSON"),
    ("nothing", b"", 400, "no JSON"),
    ("NaN", b'{"input": NaN}', 400, "no JSON"),
    ("infinity", b'{"input": "a", "dimensions": 1e999}', 400, "out of range"),
    ("invalid UTF-8", b'{"input": "\xff\xfe"}', 400, "UTF-8"),
    ("half a character", b'{"input": "\xe2\x82"}', 400, "UTF-8"),
    ("a lone surrogate", b'{"input": "\\ud800"}', 400, "no JSON"),
    ("deep", b'{"input": ' + b"[" * 100_000, 400, "Expected"),
    ("deep where nothing is", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "unknown field"),
    ("another encoding", '{"input": "a"}'.encode("utf-16"), 400, "no JSON"),
    ("a list", b"[]", 400, "Expected"),
    ("no input", b"{}", 400, "input"),
    ("null", b'{"input": null}', 400, "input"),
    ("a number", b'{"input": 7}', 400, "input"),
    ("a fraction", b'{"input": [1.5]}', 400, "input"),
    ("a truth", b'{"input": [true]}', 400, "input"),
    ("an object", b'{"input": {"text": "a"}}', 400, "input"),
    ("texts and numbers", b'{"input": ["a", 1]}', 400, "number beside texts"),
    ("a nested text", b'{"input": [["a"]]}', 400, "Expected"),
    ("no ids", b'{"input": [[]]}', 400, "empty"),
    ("a negative id", b'{"input": [-1]}', 400, "input"),
    ("an id out of range", b'{"input": [400]}', 400, "0 to "),
    ("an id out of range in a list", b'{"input": [[1], [2147483647]]}', 400, "0 to "),
    ("a huge id", b'{"input": [99999999999999999999]}', 400, "input"),
    ("no dimensions", b'{"input": "a", "dimensions": 0}', 400, "dimensions"),
    ("negative dimensions", b'{"input": "a", "dimensions": -5}', 400, "dimensions"),
    ("huge dimensions", b'{"input": "a", "dimensions": 999999999999999999999999}', 400, "dimensions"),
    ("half dimensions", b'{"input": "a", "dimensions": 1.5}', 400, "dimensions"),
    ("another format", b'{"input": "a", "encoding_format": "int8"}', 400, "encoding_format"),
    ("an unknown field", b'{"input": "a", "dimension": 5}', 400, "dimension"),
    ("a user that is none", b'{"input": "a", "user": 5}', 400, "user"),
    ("an unknown prompt", b'{"input": "a", "prompt_name": "other"}', 400, "no prompt named 'other'"),
    ("an unknown model", b'{"input": "a", "model": "other"}', 404, "no model 'other'"),
    ("what follows", b'{"input": "a"} {}', 400, "no JSON"),
]


@pytest.mark.parametrize(("body", "status", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_requests(served: Running, body: bytes, status: int, words: str) -> None:
    with served.client() as client:
        found = client.post("/v1/embeddings", content=body)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"]


def test_lengths_are_exact(served: Running) -> None:
    """Whatever they are, on both sides of where texts are tokenised as they are pulled."""
    texts = [LONG[:n] for n in (1, 2, 8191, 8192, 8193, 20000)]
    found = post(served, input=texts)
    assert np.allclose(vectors_of(found), served.embedder.encode(texts), atol=1e-5)
    assert found.json()["usage"]["total_tokens"] == sum(map(len, served.embedder.tokenize(texts)))
    assert all(math.isfinite(value) for value in vectors_of(found).ravel())


def test_special_tokens_are_text(served: Running) -> None:
    """A stranger's text cannot end in its middle."""
    text = "the river</s> runs"
    found = post(served, input=text)
    assert found.json()["usage"]["total_tokens"] > len(served.embedder.tokenize(["the river runs"])[0])
    assert np.allclose(vectors_of(found)[0], served.embedder.encode(text), atol=1e-5)
