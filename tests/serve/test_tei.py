"""The interface of text-embeddings-inference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from tests.corpus.tiny import make_text
from tests.serve.running import LONG, Running

TEXTS = ["the river", "boats drift slowly past grey stones", LONG]


def post(served: Running, path: str, **body: Any) -> Any:
    with served.client() as client:
        return client.post(path, json=body)


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embed(served: Running, path: str) -> None:
    found = post(served, path, inputs=TEXTS)
    assert found.status_code == 200
    assert np.allclose(found.json(), served.embedder.encode(TEXTS), atol=1e-5)
    assert int(found.headers["x-compute-tokens"]) == sum(map(len, served.embedder.tokenize(TEXTS)))
    one = post(served, path, inputs="the river", truncate=True)
    assert np.allclose(one.json(), served.embedder.encode(["the river"]), atol=1e-5)


def test_settings(served: Running, last_model: Any) -> None:
    plain = post(served, "/embed", inputs=TEXTS, normalize=False, model="last", dimensions=9)
    expected = last_model.encode(TEXTS, normalize_embeddings=False, truncate_dim=9)
    assert np.allclose(plain.json(), expected, atol=1e-5)
    query = post(served, "/embed", inputs=TEXTS, prompt_name="query")
    assert np.allclose(query.json(), served.embedder.encode(TEXTS, prompt_name="query"), atol=1e-5)


def test_the_hubs_client(served: Running) -> None:
    client = InferenceClient(base_url=served.url)
    for text in TEXTS:
        found = client.feature_extraction(text, normalize=True)
        assert np.allclose(np.array(found).reshape(-1), served.embedder.encode(text), atol=1e-5)
    prompted = client.feature_extraction(TEXTS[0], prompt_name="query")
    expected = served.embedder.encode(TEXTS[0], prompt_name="query")
    assert np.allclose(np.array(prompted).reshape(-1), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "last"])
def test_the_vectors_of_all_tokens(served: Running, name: str) -> None:
    """Their pooling is the vector of the text."""
    embedder = served.server.model(name).embedder
    ids = embedder.tokenize(["the river", make_text(400)])
    found = post(served, "/embed_all", inputs=["the river", make_text(400), ids[0].tolist(), ""], model=name)
    assert found.status_code == 200, found.text
    hidden = [np.array(each) for each in found.json()]
    assert [len(each) for each in hidden] == [*map(len, ids), len(ids[0]), len(embedder.tokenize([""])[0])]
    assert np.allclose(hidden[0], hidden[2], atol=1e-6)
    for each, vector in zip(hidden[:2], embedder.encode_ids(ids), strict=True):
        pooled = each.mean(axis=0) if name == "tiny" else each[-1]
        assert np.allclose(pooled, vector, atol=1e-5)


def test_too_many_tokens_for_all_their_vectors(served: Running) -> None:
    for inputs in (LONG * 20, LONG, [LONG, "a"]):
        assert post(served, "/embed_all", inputs=inputs).status_code == 413


def test_similarity(served: Running) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = post(served, "/similarity", inputs=inputs)
    vectors = served.embedder.encode(TEXTS)
    assert np.allclose(found.json(), served.embedder.similarity(vectors[:1], vectors)[0], atol=1e-5)


def test_tokenize_and_decode(served: Running) -> None:
    texts = ["the river", "naïve façade 🦢 now"]
    found = post(served, "/tokenize", inputs=texts).json()
    for text, tokens, ids in zip(texts, found, served.embedder.tokenize(texts), strict=True):
        assert [token["id"] for token in tokens] == ids.tolist()
        assert tokens[-1] == {"id": 0, "text": "</s>", "special": True, "start": None, "stop": None}
        assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens[:-1])
    bare = post(served, "/tokenize", inputs=texts, add_special_tokens=False).json()
    ids = [[token["id"] for token in tokens] for tokens in bare]
    assert all(len(short) + 1 == len(tokens) for short, tokens in zip(ids, found, strict=True))
    assert post(served, "/decode", ids=ids).json() == texts
    assert post(served, "/decode", ids=ids[0]).json() == texts[:1]
    whole = [token["id"] for token in found[0]]
    assert post(served, "/decode", ids=whole).json() == texts[:1]
    assert post(served, "/decode", ids=whole, skip_special_tokens=False).json() == [texts[0] + "</s>"]


def test_prompts_are_tokenized_with_the_text(served: Running) -> None:
    found = post(served, "/tokenize", inputs="the river", prompt_name="query").json()[0]
    prompt = served.embedder.prompts["query"]
    assert [token["id"] for token in found] == served.embedder.tokenize(["the river"], prompt)[0].tolist()


def test_info(served: Running) -> None:
    with served.client() as client:
        found = client.get("/info").json()
    assert found["model_id"] == "tiny"
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert found["auto_truncate"] is False
    for name in ("max_concurrent_requests", "max_input_length", "max_batch_tokens", "max_client_batch_size"):
        assert isinstance(found[name], int)


def test_health(served: Running) -> None:
    with served.client() as client:
        for path in ("/health", "/ping", "/ready"):
            assert client.get(path).status_code == 200


BAD = [
    ("no JSON", "/embed", b"{", 400, "Validation"),
    ("wrong types", "/embed", b'{"inputs": 5}', 422, "Validation"),
    ("NaN", "/embed", b'{"inputs": NaN}', 400, "Validation"),
    ("empty", "/embed", b'{"inputs": []}', 400, "Empty"),
    ("too many", "/embed", json.dumps({"inputs": ["a"] * 2049}).encode(), 413, "Validation"),
    ("an id out of range", "/embed", b'{"inputs": [[7000]]}', 422, "Validation"),
    ("dimensions", "/embed", b'{"inputs": "a", "dimensions": 10000}', 422, "Validation"),
    ("a prompt", "/embed", b'{"inputs": "a", "prompt_name": "none"}', 422, "Validation"),
    ("no sentences", "/similarity", b'{"inputs": {"source_sentence": "a", "sentences": []}}', 400, "Empty"),
    ("ids to tokenize", "/tokenize", b'{"inputs": [1, 2]}', 422, "Validation"),
    ("ids that there are not", "/decode", b'{"ids": [9999]}', 422, "Validation"),
    ("huge ids", "/decode", b'{"ids": [4294967296]}', 422, "Validation"),
    ("texts to decode", "/decode", b'{"ids": ["a"]}', 422, "Validation"),
    ("another model", "/embed", b'{"inputs": "a", "model": "other"}', 404, "Validation"),
]


@pytest.mark.parametrize(("path", "body", "status", "kind"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_requests(served: Running, path: str, body: bytes, status: int, kind: str) -> None:
    with served.client() as client:
        found = client.post(path, content=body)
    assert found.status_code == status, found.text
    assert found.json().keys() == {"error", "error_type"}
    assert found.json()["error_type"] == kind


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/none", 404), ("GET", "/embed", 405)])
def test_paths_that_there_are_not(served: Running, method: str, path: str, status: int) -> None:
    with served.client() as client:
        found = client.request(method, path)
    assert found.status_code == status
    assert found.json().keys() == {"error", "error_type"}


def test_metrics(served: Running) -> None:
    post(served, "/embed", inputs=TEXTS)
    post(served, "/embed", inputs=[])
    with served.client() as client:
        page = client.get("/metrics").text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if not line.startswith("#")
    }
    assert values['te_request_count{method="batch"}'] >= 1
    assert values['te_request_success{method="batch"}'] >= 1
    assert values['te_request_failure{err="empty"}'] >= 1
    assert values['thalweg_requests_total{route="/embed",status="200"}'] >= 1
    assert values['thalweg_tokens_total{model="tiny"}'] >= sum(map(len, served.embedder.tokenize(TEXTS)))
    assert values['thalweg_rate{model="tiny"}'] > 0
    assert values['thalweg_queued_tokens{model="tiny"}'] == 0
    assert values["te_embed_count"] >= len(TEXTS)
    for name in ("request_duration", "embed_duration", "embed_queue_duration", "embed_tokenization_duration"):
        assert values[f"te_{name}_count"] >= 1
    assert values["te_embed_inference_duration_sum"] > 0
    assert {"te_queue_size", "te_batch_next_tokens_count", "te_request_input_length_count"} <= set(values)
