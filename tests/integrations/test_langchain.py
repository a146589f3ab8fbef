"""`ThalwegEmbeddings` is what LangChain's own standard tests ask for, and gives the vectors of `Embedder`."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

import thalweg
from tests.corpus.tiny import make_text, write_model
from tests.integrations.frameworks import TEXTS, with_heartbeats, write_prompted_model
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.integrations._shared import SharedModel
from thalweg.integrations.langchain import ThalwegEmbeddings, ThalwegTextSplitter


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


TWICE = "It rained.\n\nThe dam held.\n\nIt rained.\n\nThe dam broke.\n\nIt rained."


def vectors_in(store: InMemoryVectorStore) -> dict[int, list[float]]:
    """By where the text began."""
    return {entry["metadata"]["start_index"]: entry["vector"] for entry in store.store.values()}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that were embedded by themselves."""
    seen: list[str] = []
    whole = SharedModel.embed_documents

    def counted(self: SharedModel, texts: Any, options: Any) -> list[list[float]]:
        seen.extend(texts)
        return whole(self, texts, options)

    monkeypatch.setattr(SharedModel, "embed_documents", counted)
    return seen


def test_a_store_takes_the_vectors_that_chunks_carry(
    prompted: tuple[str, thalweg.Embedder], embedded: list[str]
) -> None:
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0]), by="paragraph")
    chunks = splitter.split_documents([Document(TWICE, metadata={"source": {"name": "log"}})])
    expected = {
        section.char_start: section.vector
        for section in prompted[1].encode_sections(TWICE, by="paragraph", prompt_name="document")
    }
    stores = [InMemoryVectorStore(splitter.embeddings) for _ in range(3)]
    stores[0].add_documents(chunks)
    stores[1].add_documents(pickle.loads(pickle.dumps(copy.deepcopy(chunks[::-1]))))
    asyncio.run(stores[2].aadd_documents(chunks))
    for store in stores:
        found = vectors_in(store)
        assert found.keys() == expected.keys()
        for start, vector in found.items():
            np.testing.assert_allclose(vector, expected[start], atol=1e-5)
    assert embedded == []
    assert [chunk.metadata["source"] for chunk in chunks] == [{"name": "log"}] * len(expected)
    assert chunks[0].metadata["source"] is not chunks[1].metadata["source"]


class OfTexts(VectorStore):
    """A store that takes texts and metadata instead of documents, as FAISS and Chroma do."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embedder = embeddings
        self.rows: list[tuple[str, list[float]]] = []

    def add_texts(self, texts: Iterable[str], metadatas: Any = None, *, ids: Any = None, **kwargs: Any) -> list[str]:
        given = list(texts)
        self.rows += zip(given, self.embedder.embed_documents(given), strict=True)
        return given

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> OfTexts:
        store = cls(embedding)
        store.add_texts(texts, metadatas)
        return store

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        raise NotImplementedError


def test_a_store_that_takes_texts_has_the_vectors_too(prompted: tuple[str, thalweg.Embedder]) -> None:
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0]), by="paragraph")
    chunks = splitter.split_documents([Document(TWICE)])
    store = OfTexts.from_documents(chunks, splitter.embeddings)
    store.add_documents(chunks)
    asyncio.run(store.aadd_documents(chunks))
    expected = [s.vector for s in prompted[1].encode_sections(TWICE, by="paragraph", prompt_name="document")] * 3
    np.testing.assert_allclose([vector for _, vector in store.rows], expected, atol=1e-5)


def test_a_store_of_chunks_finds_the_passage(embedded: list[str]) -> None:
    texts = ["High water cut off the village.", "Bond prices fell a little.", "She tuned the old violin."]
    splitter = ThalwegTextSplitter(by="paragraph", mode="isolated")
    store = InMemoryVectorStore(splitter.embeddings)
    store.add_documents(splitter.split_documents([Document("\n\n".join(texts))]))
    assert store.similarity_search("flooding after heavy rain", k=1)[0].page_content.strip() == texts[0]
    [found] = asyncio.run(store.asimilarity_search("government debt markets", k=1))
    assert found.page_content.strip() == texts[1]
    assert embedded == []


def test_chunks_are_plain_documents_otherwise(prompted: tuple[str, thalweg.Embedder]) -> None:
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0]), by="paragraph")
    chunk = splitter.split_documents([Document(TWICE)])[0]
    plain = Document("It rained.\n\n", metadata={"start_index": 0})
    assert chunk == plain
    assert chunk.model_dump() == plain.model_dump()
    assert json.loads(chunk.model_dump_json()) == json.loads(plain.model_dump_json())
    assert splitter.split_text(TWICE) == [chunk.page_content for chunk in splitter.create_documents([TWICE])]
    assert splitter.transform_documents([Document(TWICE)]) == splitter.split_documents([Document(TWICE)])


def test_a_text_that_was_changed_or_copied_has_lost_its_vector(prompted: tuple[str, thalweg.Embedder]) -> None:
    """Nobody can say any more what its context was, so that it is refused and not embedded once more without one."""
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0]), by="paragraph")
    chunks = splitter.split_documents([Document(TWICE)])
    chunk = chunks[2].page_content
    for text in [chunk.strip(), Document(chunk).page_content, str(chunk), "Log: " + chunk, chunk[:], "swans"]:
        with pytest.raises(InvalidInputError, match=r"carries no vector.*add_documents"):
            splitter.embeddings.embed_documents([chunk, text])
    with pytest.raises(InvalidInputError, match=r"'It rained.*carries no vector"):
        InMemoryVectorStore.from_documents(chunks, splitter.embeddings)  # which makes documents anew


async def test_a_vector_is_not_dropped_in_silence(prompted: tuple[str, thalweg.Embedder]) -> None:
    embeddings = ThalwegEmbeddings(model=prompted[0])
    chunks = ThalwegTextSplitter(embeddings, by="paragraph").split_text(TWICE)
    with pytest.raises(InvalidInputError, match=r"'It rained.*give the store the `embeddings`"):
        embeddings.embed_documents(["swans", *chunks])
    with pytest.raises(InvalidInputError, match=r"'It rained.*give the store the `embeddings`"):
        await embeddings.aembed_documents(chunks)
    assert embeddings.embed_documents([str(chunks[0])]) == embeddings.embed_documents(["It rained.\n\n"])


@pytest.mark.parametrize(
    "options", [{"truncate_dim": 8}, {"normalize_embeddings": False}, {"precision": "binary"}], ids=str
)
def test_vectors_of_other_settings_are_refused(prompted: tuple[str, thalweg.Embedder], options: dict[str, Any]) -> None:
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0], encode_kwargs=options))
    chunks = splitter.split_text("swans")
    [vector] = splitter.embeddings.embed_documents(chunks)
    np.testing.assert_allclose(vector, prompted[1].encode_document("swans", **options), atol=1e-4)
    with pytest.raises(InvalidInputError, match=f"a vector with {next(iter(options))}="):
        ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0])).embeddings.embed_documents(chunks)
    with pytest.raises(InvalidInputError, match="a vector with model="):
        ThalwegTextSplitter().embeddings.embed_documents(chunks)


def test_mistakes_with_a_splitter(prompted: tuple[str, thalweg.Embedder]) -> None:
    splitter = ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0]))
    wrong: Any
    for wrong in ["one text", None, [3], ["a text"]]:
        with pytest.raises(InvalidInputError, match="must be"):
            splitter.split_documents(wrong)
    for wrong in ["one text", None, [3], [None]]:
        with pytest.raises(InvalidInputError, match="must be a"):
            splitter.create_documents(wrong)
    with pytest.raises(InvalidInputError, match="2 texts, but 1 metadatas"):
        splitter.create_documents(["a", "b"], [{}])
    wrong = prompted[1]
    with pytest.raises(InvalidInputError, match="embeddings must be ThalwegEmbeddings, got Embedder"):
        ThalwegTextSplitter(wrong)
    with pytest.raises(InvalidInputError, match="precision='int8'"):
        ThalwegTextSplitter(ThalwegEmbeddings(model=prompted[0], encode_kwargs={"precision": "int8"}))
