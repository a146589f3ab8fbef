"""Embedders and a splitter for Haystack pipelines: texts of any length, none cut.

from thalweg.integrations.haystack import ThalwegDocumentEmbedder, ThalwegDocumentSplitter, ThalwegTextEmbedder
documents = ThalwegDocumentEmbedder().run(documents)["documents"]
chunks = ThalwegDocumentSplitter(by="paragraph").run(documents)["documents"]
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from thalweg.assets import MODEL_NAME
from thalweg.integrations._shared import needs_extra
from thalweg.integrations.haystack.settings import ThalwegEmbedder, document_list
from thalweg.integrations.haystack.splitter import ThalwegDocumentSplitter

with needs_extra("haystack", "haystack"):
    from haystack import Document, component

with suppress(ImportError):  # releases that load components of any module
    from haystack.core.serialization import allow_deserialization_module

    allow_deserialization_module(__name__)

__all__ = ["ThalwegDocumentEmbedder", "ThalwegDocumentSplitter", "ThalwegTextEmbedder"]


@component
class ThalwegTextEmbedder(ThalwegEmbedder):
    """Embeds one string, such as a query, with the model's prompt for queries."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """{"embedding": the vector of `text`}. Raises TypeError for anything but a str."""
        vector = self.loaded().embed_query(self._checked(text), self.options())
        return {"embedding": self.quantized([vector])[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        """`run` without blocking the event loop."""
        vector = await self.loaded().aembed_query(self._checked(text), self.options())
        return {"embedding": self.quantized([vector])[0]}

    def _checked(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(
                f"ThalwegTextEmbedder expects a str, not {type(text).__name__}; "
                "for a list of Documents use ThalwegDocumentEmbedder"
            )
        return text + self.suffix


@component
class ThalwegDocumentEmbedder(ThalwegEmbedder):
    """Gives documents their `embedding`, with the model's prompt for documents."""

    shows_progress = True

    def __init__(
        self,
        model: str = MODEL_NAME,
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **settings: Any,
    ) -> None:
        """Nothing is loaded before `warm_up` or the first `run`.

        Args:
            meta_fields_to_embed: metadata to put before a document's content, in this order.
            embedding_separator: what stands between them.
            model, settings: the arguments of `ThalwegTextEmbedder`.
        """
        ThalwegEmbedder.__init__(self, model, **settings)  # not super(): `component` builds another class from this one
        self.meta_fields_to_embed = list(meta_fields_to_embed or [])
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """{"documents": copies of `documents` with their vectors}. Raises TypeError for anything but Documents."""
        vectors = self.loaded().embed_documents(self._texts(documents), self.options())
        return self._embedded(documents, vectors)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`run` without blocking the event loop."""
        vectors = await self.loaded().aembed_documents(self._texts(documents), self.options())
        return self._embedded(documents, vectors)

    @classmethod
    def setting_names(cls) -> list[str]:
        return [*ThalwegEmbedder.setting_names(), "meta_fields_to_embed", "embedding_separator"]

    def _texts(self, documents: list[Document]) -> list[str]:
        given = document_list(documents, "ThalwegDocumentEmbedder", "; for a string use ThalwegTextEmbedder")
        return [self._text(document) for document in given]

    def _text(self, document: Document) -> str:
        fields = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(field) for field in fields if field is not None]
        return self.embedding_separator.join([*parts, document.content or ""]) + self.suffix

    def _embedded(self, documents: list[Document], vectors: list[list[float]]) -> dict[str, list[Document]]:
        pairs = zip(documents, self.quantized(vectors), strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}
