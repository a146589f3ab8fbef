"""The splitters for LangChain, LlamaIndex and Haystack give the sections and vectors of `encode_sections`."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import haystack
import langchain_core.documents
import llama_index.core
import numpy as np
import pytest
from llama_index.core.schema import TextNode

import thalweg
from tests.corpus.tiny import make_text
from tests.integrations.frameworks import with_heartbeats, write_prompted_model
from thalweg.errors import InvalidInputError
from thalweg.integrations._shared import SharedModel
from thalweg.integrations.haystack import ThalwegDocumentSplitter
from thalweg.integrations.langchain import ThalwegEmbeddings, ThalwegTextSplitter
from thalweg.integrations.llama_index import ThalwegEmbedding, ThalwegNodeParser

TEXTS = [
    "One river.\n\nAnother river.\n\nOne river.\n\n" + make_text(300) + "\n\nOne river.",
    "",
    " \n\n ",
    "# Swans\nA swan — and an emoji 🦢.\n\n\n# Boats\nNone.",
    make_text(900, seed=1),
]


class Found(NamedTuple):
    text: str
    start: int
    vector: Any


class Framework(NamedTuple):
    """A splitter, made by name and options; the chunks of texts; the same in a coroutine."""

    make: Callable[..., Any]
    split: Callable[[Any, list[str]], list[Found]]
    asplit: Callable[[Any, list[str]], Any]


def make_langchain(name: str, options: dict[str, Any], **sections: Any) -> ThalwegTextSplitter:
    return ThalwegTextSplitter(ThalwegEmbeddings(model=name, encode_kwargs=options), **sections)


def of_langchain(chunks: Any) -> list[Found]:
    return [Found(c.page_content, c.metadata["start_index"], c.page_content.vector) for c in chunks]


def langchain_documents(texts: list[str]) -> list[langchain_core.documents.Document]:
    return [langchain_core.documents.Document(text) for text in texts]


def make_llama_index(name: str, options: dict[str, Any], **sections: Any) -> ThalwegNodeParser:
    return ThalwegNodeParser(ThalwegEmbedding(name, encode_kwargs=options), **sections)


def of_llama_index(nodes: Any) -> list[Found]:
    for node in nodes:
        assert isinstance(node, TextNode)
        assert node.start_char_idx is not None
        assert node.end_char_idx == node.start_char_idx + len(node.text)
    return [Found(node.text, node.start_char_idx, node.embedding) for node in nodes]


def llama_documents(texts: list[str]) -> list[llama_index.core.Document]:
    return [llama_index.core.Document(text=text) for text in texts]


def make_haystack(name: str, options: dict[str, Any], **sections: Any) -> ThalwegDocumentSplitter:
    return ThalwegDocumentSplitter(name, progress_bar=False, encode_kwargs=options, **sections)


def of_haystack(result: Any) -> list[Found]:
    return [Found(c.content, c.meta["split_idx_start"], c.embedding) for c in result["documents"]]


def haystack_documents(texts: list[str]) -> list[haystack.Document]:
    return [haystack.Document(content=text) for text in texts]


FRAMEWORKS = {
    "langchain": Framework(
        make_langchain,
        lambda splitter, texts: of_langchain(splitter.split_documents(langchain_documents(texts))),
        lambda splitter, texts: splitter.atransform_documents(langchain_documents(texts)),
    ),
    "llama_index": Framework(
        make_llama_index,
        lambda parser, texts: of_llama_index(parser.get_nodes_from_documents(llama_documents(texts))),
        lambda parser, texts: parser.aget_nodes_from_documents(llama_documents(texts)),
    ),
    "haystack": Framework(
        make_haystack,
        lambda splitter, texts: of_haystack(splitter.run(haystack_documents(texts))),
        lambda splitter, texts: splitter.run_async(haystack_documents(texts)),
    ),
}
OF = {"langchain": of_langchain, "llama_index": of_llama_index, "haystack": of_haystack}

every_framework = pytest.mark.parametrize("name", FRAMEWORKS)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, thalweg.Embedder]:
    return write_prompted_model(tmp_path_factory.mktemp("splitters") / "model")


def sections_of(model: thalweg.Embedder, texts: list[str], **options: Any) -> Iterator[Found]:
    for text in texts:
        for section in model.encode_sections(text, prompt_name="document", **options):
            yield Found(text[section.char_start : section.char_end], section.char_start, section.vector)


def assert_same(found: list[Found], expected: list[Found]) -> None:
    assert [(each.text, each.start) for each in found] == [(each.text, each.start) for each in expected]
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(each.vector, other.vector, atol=1e-5)


def after_every_river(text: str) -> list[int]:
    return [end for end in range(1, len(text)) if text[:end].endswith("river.")]


CHOICES: list[dict[str, Any]] = [
    {},
    {"every": 40, "mode": "prefix"},
    {"by": "paragraph"},
    {"by": "paragraph", "mode": "isolated"},
    {"by": "sentence", "every": 2, "look_ahead": 5},
    {"by": "heading"},
]


@every_framework
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_chunks_are_those_of_encode_sections(
    name: str, choice: dict[str, Any], prompted: tuple[str, thalweg.Embedder]
) -> None:
    framework = FRAMEWORKS[name]
    found = framework.split(framework.make(prompted[0], {}, **choice), TEXTS)
    assert_same(found, list(sections_of(prompted[1], TEXTS, **choice)))
    assert "".join(each.text for each in found) == "".join(TEXTS)
    assert framework.split(framework.make(prompted[0], {}), []) == []


@every_framework
def test_a_function_says_where_sections_end(name: str, prompted: tuple[str, thalweg.Embedder]) -> None:
    framework = FRAMEWORKS[name]
    texts = [TEXTS[0], "A river. Then nothing."]
    found = framework.split(framework.make(prompted[0], {}, by=after_every_river), texts)
    assert_same(found, list(sections_of(prompted[1], texts, by=after_every_river)))
    assert found[0].text == "One river."


@every_framework
def test_equal_texts_keep_their_own_vectors(name: str, prompted: tuple[str, thalweg.Embedder]) -> None:
    framework = FRAMEWORKS[name]
    rivers = ["\n\n".join(["The same."] * 4), "Before. " * 30 + "\n\n" + "\n\n".join(["The same."] * 2)]
    found = framework.split(framework.make(prompted[0], {}, by="paragraph"), rivers)
    assert_same(found, list(sections_of(prompted[1], rivers, by="paragraph")))
    same = np.array([each.vector for each in found if each.text == "The same.\n\n"])
    assert len(same) == 4
    assert np.abs(same[0] - same[1:]).max(axis=1).min() > 1e-4


@every_framework
async def test_async_gives_the_same_and_the_event_loop_goes_on(
    name: str, prompted: tuple[str, thalweg.Embedder]
) -> None:
    framework = FRAMEWORKS[name]
    splitter = framework.make(prompted[0], {}, by="paragraph")
    texts = [*TEXTS, make_text(20_000)]
    chunks, beats = await with_heartbeats(framework.asplit(splitter, texts))
    assert_same(OF[name](chunks), await asyncio.to_thread(framework.split, splitter, texts))
    assert beats > 10


@every_framework
def test_options_reach_the_model(
    name: str, prompted: tuple[str, thalweg.Embedder], caplog: pytest.LogCaptureFixture
) -> None:
    framework = FRAMEWORKS[name]
    options = {"max_length": 40, "vertical_chunk_size": 7}
    splitter = framework.make(prompted[0], {**options, "prompt": "as: "}, by="paragraph")
    expected = [
        Found(text[section.char_start : section.char_end], section.char_start, section.vector)
        for text in TEXTS
        for section in prompted[1].encode_sections(text, by="paragraph", prompt="as: ", max_length=40)
    ]
    assert_same(framework.split(splitter, TEXTS), expected)
    assert "max_length=40 cut 2 of 5 texts" in caplog.text


@every_framework
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda splitter: pickle.loads(pickle.dumps(splitter))])
def test_copies_do_the_same(name: str, duplicate: Any, prompted: tuple[str, thalweg.Embedder]) -> None:
    framework = FRAMEWORKS[name]
    splitter = framework.make(prompted[0], {"truncate_dim": 8} if name != "haystack" else {}, by=after_every_river)
    expected = framework.split(splitter, TEXTS[:1])
    assert_same(framework.split(duplicate(splitter), TEXTS[:1]), expected)


@every_framework
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"by": "page"}, "by must be one of"),
        ({"by": [3, 9]}, "positions in one text"),
        ({"every": 0}, "every"),
        ({"mode": "maximum"}, "mode must be one of"),
        ({"mode": "isolated", "look_ahead": 2}, "look_ahead=2"),
    ],
)
def test_mistakes_are_named_when_it_is_made(
    name: str, sections: dict[str, Any], message: str, prompted: tuple[str, thalweg.Embedder]
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        FRAMEWORKS[name].make(prompted[0], {}, **sections)


@every_framework
def test_the_model_runs_once(
    name: str, prompted: tuple[str, thalweg.Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the text, and nothing through the path that embeds texts by themselves."""
    monkeypatch.setattr(SharedModel, "embed_documents", None)
    monkeypatch.setattr(SharedModel, "aembed_documents", None)
    calls = []
    whole = thalweg.Embedder.encode_stream

    def counted(self: thalweg.Embedder, documents: Any, **options: Any) -> Any:
        calls.append(len(documents))
        return whole(self, documents, **options)

    framework = FRAMEWORKS[name]
    splitter = framework.make(prompted[0], {}, by="paragraph")
    monkeypatch.setattr(thalweg.Embedder, "encode_stream", counted)
    framework.split(splitter, TEXTS)
    assert calls == [len(TEXTS)]


@pytest.mark.parametrize("make", [make_langchain, make_llama_index, make_haystack])
def test_section_size_is_short_for_so_many_tokens(make: Callable[..., Any], tmp_path: Any) -> None:
    name, _ = write_prompted_model(tmp_path / "model")

    def sections_of(splitter: Any) -> thalweg.Sections:
        found: thalweg.Sections = splitter.sections if make is make_langchain else splitter._sections()
        return found

    assert sections_of(make(name, {}, section_size=40)) == thalweg.Sections("tokens", 40)
    for wrong in ({"section_size": 40, "by": "sentence"}, {"section_size": 40, "every": 3}, {"section_size": 0}):
        with pytest.raises(InvalidInputError, match="section_size"):
            make(name, {}, **wrong)
