"""An embedding for LlamaIndex: texts of any length, none cut.

from thalweg.integrations.llama_index import ThalwegEmbedding
index = VectorStoreIndex.from_documents(documents, embed_model=ThalwegEmbedding())
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

with needs_extra("llama-index", "llama_index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_serializer

__all__ = ["ThalwegEmbedding"]


class ThalwegEmbedding(BaseEmbedding):
    """A model of thalweg as LlamaIndex's `BaseEmbedding`, with the fields of `HuggingFaceEmbedding`.

    Queries get the model's prompt for queries and texts that for documents, unless an instruction is given. Calls from
    several threads wait for each other; the async methods run in a thread of the model's own. Objects with the same
    arguments share a model. A token in `model_kwargs` is neither shown nor serialised.

    Raises InvalidInputError for an option that does not exist or a text that is no str, CheckpointError for a model
    that cannot be loaded.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default=MODEL_NAME, description="Local folder or hub id; by default the shipped model.")
    embed_batch_size: int = Field(
        default=256, description="Texts handed over at a time; they are packed by tokens.", gt=0, le=2048
    )
    query_instruction: str | None = Field(
        default=None, description="Put before every query, as it is, instead of the model's own prompt."
    )
    text_instruction: str | None = Field(
        default=None, description="Put before every text, as it is, instead of the model's own prompt."
    )
    normalize: bool | None = Field(default=None, description="Scale to length 1; by default as the model says.")
    max_length: int | None = Field(default=None, description="Cut texts to so many tokens; by default none is cut.")
    device: str | None = Field(default=None, description="By default CUDA where there is one, else the CPU.")
    cache_folder: str | None = Field(default=None, description="Of downloads, instead of huggingface_hub's.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Other arguments of thalweg.load.", repr=False
    )
    encode_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Other arguments of Embedder.encode, such as vertical_chunk_size."
    )
    show_progress_bar: bool = Field(default=False, description="A bar on stderr for every batch.")

    _shared: SharedModel = PrivateAttr()

    def __init__(self, model_name: str = MODEL_NAME, **kwargs: Any) -> None:
        super().__init__(model_name=plain(model_name), **plain(kwargs))
        check_load_options(self.model_kwargs)
        check_encode_options(self.encode_kwargs)
        place = {"device": self.device, "cache_dir": self.cache_folder}
        self._shared = shared_model(self.model_name, **{**place, **self.model_kwargs})

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "ThalwegEmbedding"

    @field_serializer("model_kwargs")
    def _without_token(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        return without_token(model_kwargs)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._shared.embed_query(query, self._options(self.query_instruction))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self._shared.aembed_query(query, self._options(self.query_instruction))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._shared.embed_documents(texts, self._options(self.text_instruction))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._shared.aembed_documents(texts, self._options(self.text_instruction))

    def _options(self, instruction: str | None) -> dict[str, Any]:
        return {
            "prompt": instruction,
            "normalize_embeddings": self.normalize,
            "max_length": self.max_length,
            "show_progress_bar": self.show_progress_bar,
            **self.encode_kwargs,
        }
