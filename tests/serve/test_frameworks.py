"""What others already have works unchanged: the embedders of LangChain, LlamaIndex and Haystack for OpenAI."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serve.running import LONG, Running

TEXTS = ["the river", "boats drift slowly", LONG.replace("\n", " ")]
"""LlamaIndex sends spaces for ends of lines."""

# Their first imports take seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clients_collected() -> Iterator[None]:
    """They leave their connections to the garbage collector, which would warn in the middle of another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def same(found: Any, served: Running, texts: Any) -> None:
    assert np.allclose(found, served.embedder.encode(texts), atol=1e-5)


def test_langchain(served: Running) -> None:
    """It counts tokens with OpenAI's tokenizer and sends their ids, unless it is told not to."""
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="tiny", base_url=f"{served.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    same(embeddings.embed_documents(TEXTS), served, TEXTS)
    same(embeddings.embed_query(TEXTS[0]), served, TEXTS[0])


def test_llama_index(served: Running) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeddings = OpenAIEmbedding(model_name="tiny", api_base=f"{served.url}/v1", api_key="none", max_retries=0)
    same(embeddings.get_text_embedding_batch(TEXTS), served, TEXTS)
    same(embeddings.get_query_embedding(TEXTS[0]), served, TEXTS[0])


def test_haystack(served: Running) -> None:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    settings: Any = {"model": "tiny", "api_base_url": f"{served.url}/v1", "api_key": Secret.from_token("none")}
    same(OpenAITextEmbedder(**settings).run(text=TEXTS[0])["embedding"], served, TEXTS[0])
    documents = OpenAIDocumentEmbedder(**settings, progress_bar=False).run([Document(content=text) for text in TEXTS])
    same([each.embedding for each in documents["documents"]], served, TEXTS)
