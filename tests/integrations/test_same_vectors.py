"""One text has one vector, whichever library asks for it (float32, to 1e-5).

No framework refuses an empty text: its vector is that of EOS, which the shipped tokenizer puts after every text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import thalweg
from tests.corpus.tiny import make_text
from thalweg.assets import book, model_folder
from thalweg.pooling.vectors import finish

# Since 5.24 transformers calls it `cache`; the card's loop is the same as before.
pytestmark = pytest.mark.filterwarnings("ignore:.*cache_params.* is deprecated:FutureWarning")

Vectors = npt.NDArray[np.float32]
CHUNK = 512


@functools.cache
def long_text() -> str:
    """The shipped book, cut to 50,000 tokens and a little more."""
    return book().read_text(encoding="utf-8")[:216_000]


TEXTS: dict[str, Callable[[], list[str]]] = {
    "short": lambda: ["High water cut off the village.", "x", "Swans — and an emoji 🦢", "naïve façade"],
    "mixed": lambda: [make_text(n, seed=n) for n in (3, 900, 40, 0, 2500, 1, 300)],
    "50,000 tokens": lambda: [long_text(), "and a short one"],
    "empty": lambda: [""],
}


@functools.cache
def model() -> thalweg.Embedder:
    return thalweg.load()


def embedder(texts: list[str]) -> Vectors:
    return model().encode(texts, vertical_chunk_size=CHUNK)


def sentence_transformers(texts: list[str]) -> Vectors:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model_folder()), device="cpu", trust_remote_code=True)
    return peer.encode(texts, vertical_chunk_size=CHUNK)


def langchain(texts: list[str]) -> Vectors:
    from thalweg.integrations.langchain import ThalwegEmbeddings

    return np.float32(ThalwegEmbeddings(encode_kwargs={"vertical_chunk_size": CHUNK}).embed_documents(texts))


def langchain_queries(texts: list[str]) -> Vectors:
    from thalweg.integrations.langchain import ThalwegEmbeddings

    embeddings = ThalwegEmbeddings()
    return np.float32([embeddings.embed_query(text) for text in texts])


def llama_index(texts: list[str]) -> Vectors:
    from thalweg.integrations.llama_index import ThalwegEmbedding

    embedding = ThalwegEmbedding(encode_kwargs={"vertical_chunk_size": CHUNK})
    return np.float32(embedding.get_text_embedding_batch(texts))


def haystack(texts: list[str]) -> Vectors:
    from haystack import Document

    from thalweg.integrations.haystack import ThalwegDocumentEmbedder

    embedder = ThalwegDocumentEmbedder(progress_bar=False, encode_kwargs={"vertical_chunk_size": CHUNK})
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return np.float32([document.embedding for document in documents])


def haystack_queries(texts: list[str]) -> Vectors:
    from thalweg.integrations.haystack import ThalwegTextEmbedder

    embedder = ThalwegTextEmbedder(progress_bar=False)
    return np.float32([embedder.run(text)["embedding"] for text in texts])


def mteb(texts: list[str]) -> Vectors:
    import mteb
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from thalweg.integrations.mteb import ThalwegEncoder

    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)
    task = mteb.get_task("STS12").metadata
    vectors = ThalwegEncoder().encode(
        loader,
        task_metadata=task,
        hf_split="test",
        hf_subset="default",
        vertical_chunk_size=CHUNK,
        show_progress_bar=False,
    )
    return np.asarray(vectors)


def transformers_loop(texts: list[str]) -> Vectors:
    from thalweg.integrations.transformers import Mamba2Model

    return loop(Mamba2Model.from_pretrained(model_folder(), dtype=torch.float32), texts)


def stock_transformers_loop(texts: list[str]) -> Vectors:
    """transformers' own class, text by text."""
    from transformers import AutoModel

    peer = AutoModel.from_pretrained(model_folder(), dtype=torch.float32)
    return np.concatenate([loop(peer, [text]) for text in texts])


@torch.inference_mode()
def loop(peer: Any, texts: list[str]) -> Vectors:
    """The loop of the model card over a left-padded batch, here with the sums that a mean needs."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder(), padding_side="left")
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    total = torch.zeros(len(texts), peer.config.hidden_size, dtype=torch.float64)
    cache = None
    for start in range(0, batch["input_ids"].shape[1], CHUNK):
        mask = batch["attention_mask"][:, start : start + CHUNK]
        output = peer(
            input_ids=batch["input_ids"][:, start : start + CHUNK],
            attention_mask=mask,
            use_cache=True,
            cache_params=cache,
        )
        cache = output.cache_params
        total += (output.last_hidden_state * mask[..., None]).sum(dim=1).double()
    return torch.nn.functional.normalize(total, dim=1).float().numpy()


ROUTES: dict[str, Callable[[list[str]], Vectors]] = {
    "Embedder": embedder,
    "SentenceTransformer": sentence_transformers,
    "LangChain": langchain,
    "LangChain, queries": langchain_queries,
    "LlamaIndex": llama_index,
    "Haystack": haystack,
    "Haystack, queries": haystack_queries,
    "mteb": mteb,
    "transformers": transformers_loop,
    "transformers, its own class": stock_transformers_loop,
}


LOOPS = ("transformers", "transformers, its own class")


@functools.cache
def expected(kind: str) -> Vectors:
    """Each text alone and in the largest chunks."""
    return np.stack([model().encode(text, vertical_chunk_size=2048) for text in TEXTS[kind]()])


def test_the_long_text_is_long() -> None:
    assert len(model().tokenizer.encode_batch([long_text()])[0]) >= 50_000


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in ("mixed", "50,000 tokens") else ()) for kind in TEXTS]
)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_same_vectors(route: str, kind: str) -> None:
    """A loop over hidden vectors gives those without the lexicon: the first dimensions, of length 1 again."""
    vectors = ROUTES[route](TEXTS[kind]())
    assert vectors.dtype == np.float32
    truncate_dim = model().model.d_model if route in LOOPS else None
    want = finish(expected(kind), normalize=True, truncate_dim=truncate_dim)
    np.testing.assert_allclose(vectors, want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
