"""Embeddings for LangChain: texts of any length, none cut.

from thalweg.integrations.langchain import ThalwegEmbeddings
store = InMemoryVectorStore(ThalwegEmbeddings())
"""

from __future__ import annotations

from typing import Any

from thalweg.assets import MODEL_NAME
from thalweg.integrations._shared import (
    SharedModel,
    check_encode_options,
    check_load_options,
    needs_extra,
    plain,
    shared_model,
    without_token,
)

with needs_extra("langchain", "langchain_core"):
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer

__all__ = ["ThalwegEmbeddings"]

_PROMPTS = ("prompt", "prompt_name")


class ThalwegEmbeddings(BaseModel, Embeddings):
    """A model of thalweg as LangChain's `Embeddings`, with the fields of `HuggingFaceEmbeddings`.

    Queries get the model's prompt for queries and documents that for documents. Calls from several threads wait for
    each other; the async methods run in a thread of the model's own. Objects with the same arguments share a model.
    A token in `model_kwargs` is neither shown nor serialised.

    Raises InvalidInputError for an option that does not exist or a text that is no str, CheckpointError for a model
    that cannot be loaded.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model_name: str = Field(default=MODEL_NAME, alias="model", frozen=True)
    """A local folder or a hub id; by default the small English model that ships with thalweg. Also given as `model`."""
    cache_folder: str | None = Field(default=None, frozen=True)
    """Where downloads are kept, instead of huggingface_hub's cache."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict, frozen=True, repr=False)
    """Arguments of `thalweg.load`: device, dtype, revision, token, local_files_only, head, special_tokens,
    max_uncut_chars."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `Embedder.encode`: prompt, prompt_name, normalize_embeddings, truncate_dim, precision,
    vertical_chunk_size, max_tokens_per_step, max_in_flight, max_length (off: nothing is cut), special_tokens,
    max_uncut_chars."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The same for queries; without any they get `encode_kwargs`. What is left out here is taken from there, except a
    prompt."""
    show_progress: bool = False
    """A progress bar on stderr, with tokens per second."""

    _shared: SharedModel = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**plain(kwargs))
        check_load_options(self.model_kwargs)
        check_encode_options(self.encode_kwargs)
        check_encode_options(self.query_encode_kwargs, "query_encode_kwargs")
        self._shared = shared_model(self.model_name, **{"cache_dir": self.cache_folder, **self.model_kwargs})

    @field_serializer("model_kwargs")
    def _without_token(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        return without_token(model_kwargs)

    @property
    def model(self) -> str:
        """The model's name, as `model_name`."""
        return self.model_name

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in order. An empty text has a vector too."""
        return self._shared.embed_documents(texts, self._document_options())

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._shared.embed_query(text, self._query_options())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` without blocking the event loop."""
        return await self._shared.aembed_documents(texts, self._document_options())

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without blocking the event loop."""
        return await self._shared.aembed_query(text, self._query_options())

    def _document_options(self) -> dict[str, Any]:
        return {"show_progress_bar": self.show_progress, **self.encode_kwargs}

    def _query_options(self) -> dict[str, Any]:
        options = self._document_options()
        if self.query_encode_kwargs:
            options = {name: value for name, value in options.items() if name not in _PROMPTS}
        return {**options, **self.query_encode_kwargs}
