"""Texts that carry their vectors into a vector store of LangChain, which knows only strings.

Two sections with the same text have different vectors in their documents, so no table from texts to vectors can be
right, and none is kept. Each text object has its own vector. It is a str in every respect; what is cut from it or made
of it is a plain str again, without a vector, and is refused where vectors are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.errors import InvalidInputError
from thalweg.integrations._shared import SharedModel, listed, needs_extra

with needs_extra("langchain", "langchain_core"):
    from langchain_core.embeddings import Embeddings


class CarriedText(str):
    """The text of a section with its vector (d,) and what made that (see `made_by`)."""

    vector: npt.NDArray[np.generic]
    made_by: dict[str, Any]

    @classmethod
    def of(cls, text: str, vector: npt.NDArray[np.generic], made_by: dict[str, Any]) -> CarriedText:
        """`text` carrying `vector`."""
        carried = cls(text)
        carried.vector, carried.made_by = vector, made_by
        return carried


def made_by(model: SharedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """What vectors must have in common to be compared; `options` are those of `Embedder.encode`."""
    embedder = model.embedder
    normalize = options.get("normalize_embeddings")
    return {
        "model": embedder.fingerprint,
        "truncate_dim": options.get("truncate_dim") or embedder.dimension,
        "normalize_embeddings": embedder.embedding_config.normalize if normalize is None else normalize,
        "precision": options.get("precision", "float32"),
    }


def without_vectors(texts: Any) -> list[Any]:
    """`texts`, none of which carries the vector of a section.

    Raises:
        InvalidInputError: one does, which would be lost, or they are no list.
    """
    given = listed(texts)
    carried = next((text for text in given if isinstance(text, CarriedText)), None)
    if carried is not None:
        raise InvalidInputError(
            f"{str(carried)!r:.60} carries the vector it has in its document: give the store the `embeddings` of the "
            "ThalwegTextSplitter, which take that one, or pass str(text) to have it embedded by itself"
        )
    return given


class SectionEmbeddings(Embeddings):
    """What a vector store of sections asks for vectors: those of documents are carried, those of queries are made.

    Args:
        queries: embeds queries.
        made_by: what the vectors of documents must have been made by.
    """

    def __init__(self, queries: Embeddings, made_by: dict[str, Any]) -> None:
        self._queries = queries
        self._made_by = made_by

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors that the texts carry.

        Raises:
            InvalidInputError: a text carries none, or one that cannot be compared with the others.
        """
        return [self._vector(text) for text in listed(texts)]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, which takes no time."""
        return self.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._queries.embed_query(text)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without blocking the event loop."""
        return await self._queries.aembed_query(text)

    def _vector(self, text: Any) -> list[float]:
        if not isinstance(text, CarriedText):
            raise InvalidInputError(
                f"{text!r:.60} carries no vector: it comes from no splitter, or was copied or changed on the way. Pass "
                "what the splitter returned to the store's add_documents, or give the store ThalwegEmbeddings, which "
                "embed any text by itself"
            )
        for name, value in self._made_by.items():
            if text.made_by[name] != value:
                raise InvalidInputError(
                    f"{str(text)!r:.60} carries a vector with {name}={text.made_by[name]!r}, but the others here have "
                    f"{value!r}; use one splitter for all documents of a store"
                )
        vector: list[float] = text.vector.tolist()
        return vector
