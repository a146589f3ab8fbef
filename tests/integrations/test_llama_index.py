"""`ThalwegEmbedding` builds and queries a real index, and gives the vectors of `Embedder`."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeRelationship, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import ValidationError

import thalweg
from tests.corpus.tiny import make_text
from tests.integrations.frameworks import TEXTS, with_heartbeats, write_prompted_model
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.integrations._shared import SharedModel
from thalweg.integrations.llama_index import ThalwegEmbedding, ThalwegNodeParser

PASSAGES = ["High water cut off the village.", "Bond prices fell a little.", "She tuned the old violin."]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, thalweg.Embedder]:
    return write_prompted_model(tmp_path_factory.mktemp("llama_index") / "model")


def test_queries_and_texts_get_their_prompts(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    embedding = ThalwegEmbedding(name)
    expected = model.encode_document(TEXTS)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[2]), expected[2], atol=1e-5)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), model.encode_query(TEXTS[0]), atol=1e-5)
    assert np.abs(model.encode_query(TEXTS[0]) - expected[0]).max() > 1e-3
    assert embedding.get_text_embedding_batch([]) == []


@pytest.mark.parametrize("batch_size", [1, 4, 2048])
async def test_async_gives_the_same_in_any_batches(prompted: tuple[str, thalweg.Embedder], batch_size: int) -> None:
    embedding = ThalwegEmbedding(prompted[0], embed_batch_size=batch_size)
    expected = prompted[1].encode_document(TEXTS)
    np.testing.assert_allclose(await embedding.aget_text_embedding_batch(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(await embedding.aget_text_embedding(TEXTS[3]), expected[3], atol=1e-5)
    assert await embedding.aget_query_embedding("swans") == embedding.get_query_embedding("swans")


async def test_the_event_loop_goes_on_meanwhile(prompted: tuple[str, thalweg.Embedder]) -> None:
    embedding = ThalwegEmbedding(prompted[0], embed_batch_size=1)
    texts = [make_text(20_000)] * 2
    vectors, beats = await with_heartbeats(embedding.aget_text_embedding_batch(texts))
    assert len(vectors) == 2
    assert beats > 10


def test_an_index_is_built_and_queried() -> None:
    index = VectorStoreIndex.from_documents([Document(text=text) for text in PASSAGES], embed_model=ThalwegEmbedding())
    retriever = index.as_retriever(similarity_top_k=1)
    assert retriever.retrieve("flooding after heavy rain")[0].text == PASSAGES[0]
    assert asyncio.run(retriever.aretrieve("government debt markets"))[0].text == PASSAGES[1]
    index.insert(Document(text="The oven bakes bread at dawn."))
    retriever = index.as_retriever(similarity_top_k=1)  # the older one keeps to the nodes that there were
    assert retriever.retrieve("a bakery")[0].text == "The oven bakes bread at dawn."


@pytest.mark.slow
def test_a_long_document_is_one_node_with_one_vector() -> None:
    texts = [make_text(6000), "Bond prices fell a little."]
    embedding = ThalwegEmbedding()
    index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=embedding)
    vectors = index.vector_store.to_dict()["embedding_dict"]
    by_text = {index.docstore.get_node(node).get_content(): vector for node, vector in vectors.items()}
    assert by_text.keys() == set(texts)
    np.testing.assert_allclose([by_text[text] for text in texts], thalweg.load().encode_document(texts), atol=1e-5)


def test_it_is_a_step_of_an_ingestion_pipeline(prompted: tuple[str, thalweg.Embedder]) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), ThalwegEmbedding()])
    nodes = pipeline.run(documents=[Document(text=" ".join(PASSAGES * 10))])
    assert len(nodes) > 1
    model = thalweg.load()
    for node in nodes:
        assert isinstance(node, TextNode)
        np.testing.assert_allclose(node.embedding, model.encode_document(node.text), atol=1e-5)


def test_options_reach_the_model(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    embedding = ThalwegEmbedding(
        model_name=name,
        query_instruction="find: ",
        text_instruction="",
        normalize=False,
        max_length=30,
        device="cpu",
        encode_kwargs={"truncate_dim": 8, "vertical_chunk_size": 5},
    )
    options: dict[str, Any] = {"normalize_embeddings": False, "max_length": 30, "truncate_dim": 8}
    expected = model.encode(TEXTS, prompt="", **options)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), expected, rtol=1e-5, atol=1e-5)
    query = model.encode(TEXTS[0], prompt="find: ", **options)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), query, rtol=1e-5, atol=1e-5)


def test_it_is_serialised_and_read_again(prompted: tuple[str, thalweg.Embedder]) -> None:
    embedding = ThalwegEmbedding(
        Path(prompted[0]),
        embed_batch_size=7,
        query_instruction="find: ",
        model_kwargs={"local_files_only": True, "token": "hf_secret"},
        encode_kwargs={"truncate_dim": 8},
    )
    stored = embedding.to_dict()
    assert stored["class_name"] == ThalwegEmbedding.class_name() == "ThalwegEmbedding"
    assert "hf_secret" not in json.dumps(stored) + repr(embedding)
    again = ThalwegEmbedding.from_dict(stored)
    assert again.to_dict() == stored
    assert again.get_query_embedding("swans") == embedding.get_query_embedding("swans")
    assert ThalwegEmbedding.from_json(embedding.to_json()).to_dict() == stored


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda embedding: pickle.loads(pickle.dumps(embedding))])
def test_copies_share_the_model(prompted: tuple[str, thalweg.Embedder], duplicate: Any) -> None:
    embedding = ThalwegEmbedding(prompted[0], encode_kwargs={"truncate_dim": 8})
    other = duplicate(embedding)
    assert other._shared is embedding._shared
    assert other.get_query_embedding("swans") == embedding.get_query_embedding("swans")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_kwargs": {"truncate_dim": 8}}, InvalidInputError, "'truncate_dim'; it belongs in encode_kwargs"),
        ({"encode_kwargs": {"promt": ""}}, InvalidInputError, "encode_kwargs has no option 'promt'; its options"),
        ({"model_name": "no such folder"}, CheckpointError, "'no such folder'"),
        ({"batch_size": 3}, ValidationError, "Extra inputs"),
    ],
)
def test_mistakes_are_named_when_it_is_made(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ThalwegEmbedding(**fields)


@pytest.mark.parametrize("text", [None, 3, ["a"]])
def test_what_is_no_text(prompted: tuple[str, thalweg.Embedder], text: Any) -> None:
    embedding = ThalwegEmbedding(prompted[0])
    with pytest.raises(InvalidInputError, match="must be a str"):
        embedding.get_text_embedding(text)
    with pytest.raises(InvalidInputError, match="must be a str"):
        embedding.get_query_embedding(text)


def ends_of_lines(text: str) -> list[int]:
    return [place + 1 for place, character in enumerate(text[:-1]) if character == "\n"]


def nodes_of(parser: ThalwegNodeParser, *documents: Document) -> list[TextNode]:
    nodes = parser.get_nodes_from_documents(documents)
    assert all(isinstance(node, TextNode) for node in nodes)
    return [node for node in nodes if isinstance(node, TextNode)]


def test_nodes_have_relations_places_and_metadata(prompted: tuple[str, thalweg.Embedder]) -> None:
    """Also a text that stands, by chance, at the end of the one before."""
    parser = ThalwegNodeParser(ThalwegEmbedding(prompted[0]), by=ends_of_lines)
    document = Document(text="banana\nana\na\na\n", metadata={"title": "Fruit"}, excluded_embed_metadata_keys=["title"])
    nodes = nodes_of(parser, document, Document(text="other", metadata={"n": 2}))
    assert [node.text for node in nodes] == ["banana\n", "ana\n", "a\n", "a\n", "other"]
    places = [(node.start_char_idx, node.end_char_idx) for node in nodes]
    assert places == [(0, 7), (7, 11), (11, 13), (13, 15), (0, 5)]
    assert [node.metadata for node in nodes] == [{"title": "Fruit"}] * 4 + [{"n": 2}]
    assert nodes[0].excluded_embed_metadata_keys == ["title"]
    for node, after in itertools.pairwise(nodes[:4]):
        assert node.ref_doc_id == after.ref_doc_id == document.doc_id
        assert node.next_node is not None
        assert after.prev_node is not None
        assert (node.next_node.node_id, after.prev_node.node_id) == (after.node_id, node.node_id)
    assert NodeRelationship.NEXT not in nodes[3].relationships
    assert NodeRelationship.PREVIOUS not in nodes[4].relationships


def test_no_index_and_no_pipeline_embeds_the_nodes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    whole = SharedModel.embed_documents

    def counted(self: SharedModel, texts: Any, options: Any) -> list[list[float]]:
        embedded.extend(texts)
        return whole(self, texts, options)

    monkeypatch.setattr(SharedModel, "embed_documents", counted)
    model = ThalwegEmbedding()
    parser = ThalwegNodeParser(model, by="paragraph", mode="isolated")
    document = Document(text="\n\n".join(PASSAGES))
    index = VectorStoreIndex.from_documents([document], transformations=[parser], embed_model=model)
    assert index.as_retriever(similarity_top_k=1).retrieve("flooding after heavy rain")[0].text.strip() == PASSAGES[0]
    store = SimpleVectorStore()
    pipeline = IngestionPipeline(transformations=[parser], vector_store=store)
    nodes = asyncio.run(pipeline.arun(documents=[document]))
    expected = [
        section.vector for section in thalweg.load().encode_sections(document.text, by="paragraph", mode="isolated")
    ]
    np.testing.assert_allclose([store.get(node.node_id) for node in nodes], expected, atol=1e-5)
    assert embedded == []


def test_a_parser_is_serialised_and_read_again(prompted: tuple[str, thalweg.Embedder]) -> None:
    model = ThalwegEmbedding(prompted[0], model_kwargs={"token": "hf_secret"}, encode_kwargs={"truncate_dim": 8})
    parser = ThalwegNodeParser(model, by="sentence", every=2, mode="prefix", look_ahead=3, include_metadata=False)
    stored = parser.to_dict()
    assert "hf_secret" not in json.dumps(stored)
    for again in (ThalwegNodeParser.from_dict(stored), ThalwegNodeParser.from_json(parser.to_json())):
        assert again.to_dict() == stored
        document = Document(text="One. Two. Three.")
        same = [node.embedding for node in nodes_of(parser, document)]
        assert [node.embedding for node in nodes_of(again, document)] == same
        assert len(same) == 2


def test_a_function_is_serialised_by_a_name_that_is_its_own(prompted: tuple[str, thalweg.Embedder]) -> None:
    """A pipeline takes nodes from its cache for what looks the same."""
    model = ThalwegEmbedding(prompted[0])
    stored = ThalwegNodeParser(model, by=ends_of_lines).to_dict()
    assert stored["by"] == "tests.integrations.test_llama_index.ends_of_lines"
    with pytest.raises(InvalidInputError, match="by must be one of"):
        ThalwegNodeParser.from_dict(stored)
    with pytest.raises(Exception, match="cannot be serialised; define the function at the top of a module"):
        ThalwegNodeParser(model, by=lambda text: [1]).to_dict()
    assert nodes_of(ThalwegNodeParser(model, by=lambda text: [1]), Document(text="ab"))[1].text == "b"


def test_mistakes_with_a_parser(prompted: tuple[str, thalweg.Embedder]) -> None:
    with pytest.raises(ValidationError, match="ThalwegEmbedding"):
        ThalwegNodeParser(prompted[1])  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="Extra inputs"):
        ThalwegNodeParser(ThalwegEmbedding(prompted[0]), chunk_size=3)
    with pytest.raises(InvalidInputError, match="precision='uint8'"):
        ThalwegNodeParser(ThalwegEmbedding(prompted[0], encode_kwargs={"precision": "uint8"}))
