"""The Haystack components in real pipelines, written to YAML and read again, with the vectors of `Embedder`."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError
from haystack.core.serialization import allow_deserialization_module
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, Secret

import thalweg
from tests.corpus.tiny import make_text
from tests.integrations.frameworks import TEXTS, with_heartbeats, write_prompted_model
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.integrations._shared import SharedModel
from thalweg.integrations.haystack import ThalwegDocumentEmbedder, ThalwegDocumentSplitter, ThalwegTextEmbedder
from thalweg.pooling.vectors import to_precision

PASSAGES = ["High water cut off the village.", "Bond prices fell a little.", "She tuned the old violin."]


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, thalweg.Embedder]:
    return write_prompted_model(tmp_path_factory.mktemp("haystack") / "model")


def embedded(embedder: ThalwegDocumentEmbedder, documents: list[Document]) -> list[Any]:
    return [document.embedding for document in embedder.run(documents)["documents"]]


def test_queries_and_documents_get_their_prompts(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    documents = [Document(content=text) for text in TEXTS]
    vectors = embedded(ThalwegDocumentEmbedder(name, progress_bar=False), documents)
    np.testing.assert_allclose(vectors, model.encode_document(TEXTS), atol=1e-5)
    query = ThalwegTextEmbedder(name, progress_bar=False).run(TEXTS[0])["embedding"]
    np.testing.assert_allclose(query, model.encode_query(TEXTS[0]), atol=1e-5)
    assert np.abs(model.encode_query(TEXTS[0]) - model.encode_document(TEXTS[0])).max() > 1e-3
    assert all(document.embedding is None for document in documents)
    assert ThalwegDocumentEmbedder(name).run([]) == {"documents": []}


def test_a_prefix_takes_the_place_of_the_prompt(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    for prefix in ("", "as: "):
        options: dict[str, Any] = {"prefix": prefix, "suffix": " end", "progress_bar": False}
        expected = model.encode(f"{prefix}swans end", prompt="")
        np.testing.assert_allclose(ThalwegTextEmbedder(name, **options).run("swans")["embedding"], expected, atol=1e-5)
        vectors = embedded(ThalwegDocumentEmbedder(name, **options), [Document(content="swans")])
        np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


def test_metadata_goes_before_the_content(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    documents = [
        Document(content="the river", meta={"title": "Boats", "year": 0, "note": None}),
        Document(content=None, meta={"title": "Swans"}),
        Document(content="the river"),
    ]
    embedder = ThalwegDocumentEmbedder(
        name, meta_fields_to_embed=["title", "year", "note"], embedding_separator=" | ", progress_bar=False
    )
    texts = ["Boats | 0 | the river", "Swans | ", "the river"]
    np.testing.assert_allclose(embedded(embedder, documents), model.encode_document(texts), atol=1e-5)


def test_options_reach_the_model(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    embedder = ThalwegDocumentEmbedder(
        name,
        device=ComponentDevice.from_str("cpu"),
        truncate_dim=8,
        normalize_embeddings=False,
        progress_bar=False,
        batch_size=2,
        trust_remote_code=True,
        model_kwargs={"dtype": "float32"},
        encode_kwargs={"vertical_chunk_size": 5, "prompt_name": "query"},
    )
    expected = model.encode_query(TEXTS, truncate_dim=8, normalize_embeddings=False)
    vectors = embedded(embedder, [Document(content=text) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)


def test_precisions(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    whole = model.encode_query(TEXTS)
    ranges = np.stack([whole.min(axis=0), whole.max(axis=0)])
    for precision in ("int8", "ubinary"):
        embedder = ThalwegTextEmbedder(
            name, precision=precision, quantization_ranges=ranges.tolist(), progress_bar=False
        )
        expected = to_precision(model.encode_query(TEXTS[:1]), precision, ranges)[0]
        assert embedder.run(TEXTS[0])["embedding"] == expected.tolist()
    with pytest.raises(InvalidInputError, match=r"must be \(2, 32\), but are \(1, 3\)"):
        ThalwegTextEmbedder(name, precision="int8", quantization_ranges=[[0, 1, 2]], progress_bar=False).run("x")


def indexing(store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", ThalwegDocumentEmbedder(progress_bar=False))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("embedder.documents", "writer.documents")
    return pipeline


def querying(store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", ThalwegTextEmbedder(progress_bar=False))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline


def best(pipeline: Pipeline, text: str) -> str | None:
    content: str | None = pipeline.run({"embedder": {"text": text}})["retriever"]["documents"][0].content
    return content


def test_pipelines_index_and_query_also_after_yaml() -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(content=text) for text in PASSAGES]
    Pipeline.loads(indexing(store).dumps()).run({"embedder": {"documents": documents}})  # into the same store
    pipeline = querying(store)
    assert best(pipeline, "flooding after heavy rain") == PASSAGES[0]
    again = Pipeline.loads(pipeline.dumps())
    assert again.dumps() == pipeline.dumps()
    assert best(again, "government debt markets") == PASSAGES[1]


async def test_pipelines_run_async() -> None:
    store = InMemoryDocumentStore()
    await indexing(store).run_async({"embedder": {"documents": [Document(content=text) for text in PASSAGES]}})
    found = await querying(store).run_async({"embedder": {"text": "music"}})
    assert found["retriever"]["documents"][0].content == PASSAGES[2]


@pytest.mark.subprocess
def test_a_new_process_reads_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text(querying(InMemoryDocumentStore()).dumps())
    program = """
from haystack import Pipeline
import thalweg.integrations.haystack
pipeline = Pipeline.loads(open("pipeline.yaml").read())
print(len(pipeline.get_component("embedder").run("swans")["embedding"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "768"


SETTINGS: dict[str, Any] = {
    "device": ComponentDevice.from_str("cuda:1"),
    "token": Secret.from_env_var("MY_TOKEN", strict=False),
    "prefix": "as: ",
    "suffix": " end",
    "batch_size": 3,
    "progress_bar": False,
    "normalize_embeddings": True,
    "trust_remote_code": True,
    "local_files_only": True,
    "truncate_dim": 8,
    "model_kwargs": {"dtype": "bfloat16"},
    "encode_kwargs": {"vertical_chunk_size": 9},
    "precision": "int8",
    "quantization_ranges": [[0.0], [1.0]],
    "revision": "main",
}


@pytest.mark.parametrize("kind", [ThalwegTextEmbedder, ThalwegDocumentEmbedder])
def test_settings_survive_to_dict_and_from_dict(kind: Any) -> None:
    more = {"meta_fields_to_embed": ["title"], "embedding_separator": " "} if kind is ThalwegDocumentEmbedder else {}
    stored = kind("some/model", **SETTINGS, **more).to_dict()
    assert stored["init_parameters"].keys() == {"model", *SETTINGS, *more}
    again = kind.from_dict(stored)
    assert again.to_dict() == stored
    assert (again.device, again.token) == (SETTINGS["device"], SETTINGS["token"])
    assert kind.from_dict(kind().to_dict()).to_dict() == kind().to_dict()


def test_a_token_given_in_person_is_not_written() -> None:
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        ThalwegTextEmbedder(token=Secret.from_token("hf_secret")).to_dict()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda embedder: pickle.loads(pickle.dumps(embedder))])
def test_copies_work_on_their_own(prompted: tuple[str, thalweg.Embedder], duplicate: Any, warm: bool) -> None:
    embedder = ThalwegTextEmbedder(prompted[0], truncate_dim=8, progress_bar=False)
    if warm:
        embedder.warm_up()
    other = duplicate(embedder)
    assert other.run("swans") == embedder.run("swans")
    assert other._shared is embedder._shared


def test_a_resolved_token_is_not_pickled(prompted: tuple[str, thalweg.Embedder], monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_secret")
    embedder = ThalwegTextEmbedder(prompted[0], token=Secret.from_env_var("MY_TOKEN"))
    embedder.warm_up()
    assert b"hf_secret" not in pickle.dumps(embedder)


def test_the_components_share_a_model(prompted: tuple[str, thalweg.Embedder]) -> None:
    text, document = ThalwegTextEmbedder(prompted[0]), ThalwegDocumentEmbedder(prompted[0])
    text.warm_up()
    document.warm_up()
    assert text._shared is document._shared


async def test_async_gives_the_same(prompted: tuple[str, thalweg.Embedder]) -> None:
    text = ThalwegTextEmbedder(prompted[0], progress_bar=False)
    assert await text.run_async("swans") == text.run("swans")
    embedder = ThalwegDocumentEmbedder(prompted[0], progress_bar=False)
    documents = [Document(content=make_text(20_000)), Document(content="swans")]
    result, beats = await with_heartbeats(embedder.run_async(documents))
    assert result == embedder.run(documents)
    assert beats > 10


def test_a_bar_is_shown_for_documents_and_not_for_a_query(
    prompted: tuple[str, thalweg.Embedder], capsys: pytest.CaptureFixture[str]
) -> None:
    ThalwegTextEmbedder(prompted[0]).run("swans")
    ThalwegDocumentEmbedder(prompted[0], progress_bar=False).run([Document(content="swans")])
    assert capsys.readouterr().err == ""
    ThalwegDocumentEmbedder(prompted[0]).run([Document(content="swans")])
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize("documents", [None, "a text", ["a text"], [Document(content="x"), 3], Document(content="x")])
def test_what_is_no_list_of_documents(documents: Any) -> None:
    with pytest.raises(TypeError, match="expects a list of Documents, not"):
        ThalwegDocumentEmbedder().run(documents)


@pytest.mark.parametrize("text", [None, 3, ["a text"], [Document(content="x")]])
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(TypeError, match="expects a str, not"):
        ThalwegTextEmbedder().run(text)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model_kwargs": {"truncate_dim": 8}}, InvalidInputError, "'truncate_dim'; it belongs in encode_kwargs"),
        ({"model_kwargs": {"device": "cpu"}}, InvalidInputError, "device is an argument of Thalweg"),
        ({"encode_kwargs": {"precision": "int8"}}, InvalidInputError, "precision is an argument of Thalweg"),
        ({"encode_kwargs": {"prompt": "a"}, "prefix": "b"}, InvalidInputError, "prefix='b' and prompt"),
        ({"precision": "int4"}, InvalidInputError, "got 'int4'"),
        ({"precision": "int8"}, InvalidInputError, "precision='int8' needs quantization_ranges"),
        ({"device": "cuda"}, ValueError, "ComponentDevice"),
        ({"modell": "x"}, TypeError, "modell"),
    ],
)
@pytest.mark.parametrize("kind", [ThalwegTextEmbedder, ThalwegDocumentEmbedder])
def test_mistakes_are_named_when_it_is_made(
    kind: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**settings)


def test_a_model_that_is_not_there_is_named_when_it_is_loaded() -> None:
    with pytest.raises(CheckpointError, match="'no such folder'"):
        ThalwegTextEmbedder("no such folder").warm_up()


def ends_of_paragraphs(text: str) -> list[int]:
    return [place + 2 for place in range(len(text)) if text[place : place + 2] == "\n\n"]


def test_chunks_have_the_metadata_that_haystacks_splitter_gives(prompted: tuple[str, thalweg.Embedder]) -> None:
    """The same passages, so that what comes after either of the two finds what it looks for."""
    text = "One.\n\n\fTwo.\n\nTwo\fand.\n\nThree.\n\n\f\f\n\nOne."
    documents = [Document(content=text, meta={"tags": ["x"]}), Document(content="Alone.", meta={"n": 1})]
    splitter = ThalwegDocumentSplitter(prompted[0], by=ends_of_paragraphs, progress_bar=False)
    found = splitter.run(documents)["documents"]
    expected = DocumentSplitter("passage", split_length=1).run(documents)["documents"]
    assert [chunk.content for chunk in found] == [chunk.content for chunk in expected]
    assert [chunk.meta for chunk in found] == [chunk.meta for chunk in expected]
    assert [chunk.id for chunk in found] == [chunk.id for chunk in expected]
    found[0].meta["tags"].append("y")
    assert documents[0].meta == {"tags": ["x"]}
    assert found[1].meta["tags"] == ["x"]


def test_a_pipeline_splits_writes_and_finds_also_after_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedModel, "embed_documents", None)
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    pipeline = Pipeline()
    pipeline.add_component("splitter", ThalwegDocumentSplitter(by="paragraph", mode="isolated", progress_bar=False))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("splitter.documents", "writer.documents")
    Pipeline.loads(pipeline.dumps()).run({"splitter": {"documents": [Document(content="\n\n".join(PASSAGES))]}})
    assert store.count_documents() == 3
    assert str(best(querying(store), "flooding after heavy rain")).strip() == PASSAGES[0]


def test_a_splitter_is_written_and_read_again() -> None:
    splitter = ThalwegDocumentSplitter(
        "some/model", by=ends_of_paragraphs, every=3, mode="prefix", look_ahead=2, **{**SETTINGS, "suffix": ""}
    )
    stored = splitter.to_dict()
    assert stored["init_parameters"]["by"] == {"function": f"{__name__}.ends_of_paragraphs"}
    with pytest.raises(DeserializationError, match="Refusing"):
        ThalwegDocumentSplitter.from_dict(stored)
    allow_deserialization_module(__name__)
    again = ThalwegDocumentSplitter.from_dict(stored)
    assert again.to_dict() == stored
    assert again.by is ends_of_paragraphs
    assert ThalwegDocumentSplitter.from_dict(ThalwegDocumentSplitter().to_dict()).by == "tokens"


def test_a_splitter_quantises_with_ranges(prompted: tuple[str, thalweg.Embedder]) -> None:
    name, model = prompted
    ranges = np.stack([model.encode(TEXTS).min(axis=0), model.encode(TEXTS).max(axis=0)])
    splitter = ThalwegDocumentSplitter(
        name, by="paragraph", precision="int8", quantization_ranges=ranges.tolist(), progress_bar=False
    )
    found = splitter.run([Document(content="One.\n\nTwo.")])["documents"]
    sections = model.encode_sections("One.\n\nTwo.", by="paragraph", prompt_name="document")
    expected = to_precision(np.stack([section.vector for section in sections]), "int8", ranges)
    assert np.abs(np.subtract([chunk.embedding for chunk in found], expected.astype(int))).max() <= 1


def test_mistakes_with_a_splitter(prompted: tuple[str, thalweg.Embedder]) -> None:
    splitter = ThalwegDocumentSplitter(prompted[0], progress_bar=False)
    with pytest.raises(TypeError, match="ThalwegDocumentSplitter expects a list of Documents, not str"):
        splitter.run("a text")
    with pytest.raises(TypeError, match="not one with str"):
        splitter.run(["a text"])
    with pytest.raises(InvalidInputError, match="has no text"):
        splitter.run([Document(content=None)])
    with pytest.raises(InvalidInputError, match="suffix=' end'"):
        ThalwegDocumentSplitter(prompted[0], suffix=" end")
