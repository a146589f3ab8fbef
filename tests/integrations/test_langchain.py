"""`ThalwegEmbeddings` is what LangChain's own standard tests ask for, and gives the vectors of `Embedder`."""

from __future__ import annotations

import asyncio
import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

import thalweg
from tests.corpus.tiny import make_text, write_model
from tests.integrations.frameworks import TEXTS, with_heartbeats, write_prompted_model
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.integrations.langchain import ThalwegEmbeddings


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return ThalwegEmbeddings


class TestStandardIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return ThalwegEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"encode_kwargs": {"vertical_chunk_size": 64}}


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, thalweg.Embedder]:
    return write_prompted_model(tmp_path_factory.mktemp("langchain") / "model")


def test_queries_and_documents_get_their_prompts(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    embeddings = ThalwegEmbeddings(model=name)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), model.encode_document(TEXTS), atol=1e-5)
    for text in TEXTS[:3]:
        np.testing.assert_allclose(embeddings.embed_query(text), model.encode_query(text), atol=1e-5)
    assert np.abs(model.encode_query(TEXTS[0]) - model.encode_document(TEXTS[0])).max() > 1e-3
    assert embeddings.embed_documents([]) == []


async def test_async_gives_the_same(prompted: tuple[str, thalweg.Embedder]) -> None:
    embeddings = ThalwegEmbeddings(model=prompted[0])
    documents, query = await asyncio.gather(embeddings.aembed_documents(TEXTS), embeddings.aembed_query(TEXTS[0]))
    assert documents == embeddings.embed_documents(TEXTS)
    assert query == embeddings.embed_query(TEXTS[0])


async def test_the_event_loop_goes_on_meanwhile(prompted: tuple[str, thalweg.Embedder]) -> None:
    embeddings = ThalwegEmbeddings(model=prompted[0])
    vectors, beats = await with_heartbeats(embeddings.aembed_documents([make_text(20_000)] * 2))
    assert len(vectors) == 2
    assert beats > 10


def test_threads_take_turns(prompted: tuple[str, thalweg.Embedder]) -> None:
    embeddings = ThalwegEmbeddings(model=prompted[0])
    texts = [make_text(60, seed=i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(embeddings.embed_query, texts)) == [embeddings.embed_query(text) for text in texts]


def test_a_vector_store_finds_the_passage() -> None:
    texts = ["High water cut off the village.", "Bond prices fell a little.", "She tuned the old violin."]
    store = InMemoryVectorStore(ThalwegEmbeddings())
    store.add_documents([Document(text, metadata={"number": i}) for i, text in enumerate(texts)])
    found = store.as_retriever(search_kwargs={"k": 1})
    assert found.invoke("flooding after heavy rain")[0].metadata == {"number": 0}
    assert asyncio.run(found.ainvoke("government debt markets"))[0].metadata == {"number": 1}


def test_options_reach_the_model(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    options = {"truncate_dim": 8, "vertical_chunk_size": 7, "normalize_embeddings": False, "prompt": "as: "}
    embeddings = ThalwegEmbeddings(model_name=name, model_kwargs={"device": "cpu"}, encode_kwargs=options)
    expected = model.encode(TEXTS, **options)
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], rtol=1e-5, atol=1e-5)


def test_what_queries_leave_out_is_taken_from_the_documents_options(prompted: tuple[str, thalweg.Embedder]) -> None:
    """All but a prompt: dimensions must agree, and a document's prompt is not a query's."""
    name, model = prompted
    embeddings = ThalwegEmbeddings(
        model=name,
        encode_kwargs={"truncate_dim": 8, "prompt": "as: "},
        query_encode_kwargs={"normalize_embeddings": False},
    )
    expected = model.encode_query(TEXTS[0], truncate_dim=8, normalize_embeddings=False)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected, rtol=1e-5, atol=1e-5)


def test_options_of_sentence_transformers_that_mean_nothing_here_are_taken(
    prompted: tuple[str, thalweg.Embedder],
) -> None:
    embeddings = ThalwegEmbeddings(
        model_name=prompted[0], model_kwargs={"trust_remote_code": True}, encode_kwargs={"batch_size": 2}
    )
    assert embeddings.embed_query("x") == ThalwegEmbeddings(model=prompted[0]).embed_query("x")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_kwargs": {"truncate_dim": 8}}, InvalidInputError, "'truncate_dim'; it belongs in encode_kwargs"),
        ({"encode_kwargs": {"device": "cpu"}}, InvalidInputError, "'device'; it belongs in model_kwargs"),
        ({"query_encode_kwargs": {"promt": ""}}, InvalidInputError, "query_encode_kwargs has no option 'promt'; its"),
        ({"model": "no such folder"}, CheckpointError, "'no such folder'"),
        ({"modell": "x"}, ValidationError, "Extra inputs"),
    ],
)
def test_mistakes_are_named_when_it_is_made(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ThalwegEmbeddings(**fields)


@pytest.mark.parametrize("texts", ["one text", b"bytes", None, 3, [None], ["a", 2.5]])
def test_what_is_no_list_of_texts(prompted: tuple[str, thalweg.Embedder], texts: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be a"):
        ThalwegEmbeddings(model=prompted[0]).embed_documents(texts)


@pytest.mark.parametrize("query", [None, 3, ["a"], b"bytes"])
def test_what_is_no_query(prompted: tuple[str, thalweg.Embedder], query: Any) -> None:
    with pytest.raises(InvalidInputError, match="a query must be a str, not"):
        ThalwegEmbeddings(model=prompted[0]).embed_query(query)


def test_a_model_is_loaded_once(prompted: tuple[str, thalweg.Embedder], tmp_path: Path) -> None:
    first = ThalwegEmbeddings(model=prompted[0], encode_kwargs={"truncate_dim": 8})
    assert ThalwegEmbeddings(model_name=prompted[0])._shared is first._shared
    assert copy.deepcopy(first)._shared is first._shared
    assert pickle.loads(pickle.dumps(first))._shared is first._shared
    assert ThalwegEmbeddings(model=prompted[0], model_kwargs={"dtype": "bfloat16"})._shared is not first._shared


def test_a_folder_that_was_written_again_is_loaded_anew(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = ThalwegEmbeddings(model=folder)
    other = write_model(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder / "new")
    (folder / "new").replace(folder / "model.safetensors")
    after = ThalwegEmbeddings(model=folder)
    np.testing.assert_allclose(after.embed_query("swans"), thalweg.load(other).encode("swans"), atol=1e-5)
    assert np.abs(np.subtract(before.embed_query("swans"), after.embed_query("swans"))).max() > 1e-3


def test_settings_are_plain_and_tell_no_secret(prompted: tuple[str, thalweg.Embedder]) -> None:
    embeddings = ThalwegEmbeddings(model=Path(prompted[0]), model_kwargs={"dtype": torch.float32, "token": "hf_secret"})
    assert embeddings.model_dump()["model_kwargs"]["dtype"] == "float32"
    assert embeddings.model == prompted[0]
    assert "hf_secret" not in repr(embeddings) + embeddings.model_dump_json()
