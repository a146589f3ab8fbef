"""Embeddings and a splitter for LangChain: texts of any length, none cut.

from thalweg.integrations.langchain import ThalwegEmbeddings, ThalwegTextSplitter
store = InMemoryVectorStore(ThalwegEmbeddings())

splitter = ThalwegTextSplitter(ThalwegEmbeddings(), by="paragraph")
store = InMemoryVectorStore(splitter.embeddings)
store.add_documents(splitter.split_documents(documents))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

from thalweg.assets import MODEL_NAME
from thalweg.embedder.sections import Mode, Unit
from thalweg.errors import InvalidInputError
from thalweg.integrations._carried import CarriedText, SectionEmbeddings, made_by, without_vectors
from thalweg.integrations._sections import Chunk, asplit_texts, check_precision, checked_sections, split_texts
from thalweg.integrations._shared import (
    SharedModel,
    check_encode_options,
    check_load_options,
    listed,
    needs_extra,
    plain,
    shared_model,
    without_token,
)

with needs_extra("langchain", "langchain_core"):
    from langchain_core.documents import BaseDocumentTransformer, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer

__all__ = ["ThalwegEmbeddings", "ThalwegTextSplitter"]

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
        return self._shared.embed_documents(without_vectors(texts), self._options())

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._shared.embed_query(text, self._query_options())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` without blocking the event loop."""
        return await self._shared.aembed_documents(without_vectors(texts), self._options())

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without blocking the event loop."""
        return await self._shared.aembed_query(text, self._query_options())

    def _options(self) -> dict[str, Any]:
        return {"show_progress_bar": self.show_progress, **self.encode_kwargs}

    def _query_options(self) -> dict[str, Any]:
        options = self._options()
        if self.query_encode_kwargs:
            options = {name: value for name, value in options.items() if name not in _PROMPTS}
        return {**options, **self.query_encode_kwargs}


class ThalwegTextSplitter(BaseDocumentTransformer):
    """Splits documents of any length into sections, and embeds them in the same pass, each in its document.

    Every chunk carries its vector into a vector store that has this splitter's `embeddings`, and none is embedded
    again. Joined, the chunks of a document are its text; `metadata["start_index"]` is where each begins.

    Args:
        embeddings: the model and its options; by default `ThalwegEmbeddings()`.
        by, every, mode, look_ahead: see `thalweg.Sections`; `by` is a unit or a function, and no list of positions.
        section_size: short for `by="tokens", every=section_size`.

    Raises InvalidInputError for an argument that cannot be or a document that is none.
    """

    embeddings: Embeddings
    """For the vector store: gives it the vectors of the chunks, and embeds queries."""

    def __init__(
        self,
        embeddings: ThalwegEmbeddings | None = None,
        *,
        by: Unit | Callable[[str], Iterable[int]] = "tokens",
        every: int | None = None,
        mode: Mode | None = None,
        look_ahead: int = 0,
        section_size: int | None = None,
    ) -> None:
        if embeddings is not None and not isinstance(embeddings, ThalwegEmbeddings):
            raise InvalidInputError(f"embeddings must be ThalwegEmbeddings, got {embeddings!r:.80}")
        self.sections = checked_sections(by, every, mode, look_ahead, section_size)
        embeddings = ThalwegEmbeddings() if embeddings is None else embeddings
        check_precision(embeddings.encode_kwargs)
        self._model, self._options = embeddings._shared, embeddings._options()
        self._made_by = made_by(self._model, self._options)
        self.embeddings = SectionEmbeddings(embeddings, self._made_by)

    def split_text(self, text: str) -> list[str]:
        """The sections of a text; each carries its vector."""
        return [document.page_content for document in self.create_documents([text])]

    def create_documents(self, texts: list[str], metadatas: list[dict[str, Any]] | None = None) -> list[Document]:
        """The sections of texts as documents; those of texts[i] have a copy of metadatas[i]."""
        texts, metadatas = _paired(texts, metadatas)
        chunks = split_texts(self._model, texts, self.sections, self._options)
        return self._documents(chunks, metadatas)

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """The sections of documents as documents, with copies of their metadata."""
        return self.create_documents(*_parts(documents))

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """`split_documents`."""
        return self.split_documents(documents)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """`split_documents` without blocking the event loop."""
        texts, metadatas = _parts(documents)
        chunks = await asplit_texts(self._model, texts, self.sections, self._options)
        return self._documents(chunks, metadatas)

    def _documents(self, chunks: list[list[Chunk]], metadatas: list[dict[str, Any]]) -> list[Document]:
        documents = []
        for of_text, metadata in zip(chunks, metadatas, strict=True):
            for chunk in of_text:
                document = Document(chunk.text, metadata={**deepcopy(metadata), "start_index": chunk.start})
                # Not as an argument, of which the document would make a plain str.
                document.page_content = CarriedText.of(chunk.text, chunk.vector, self._made_by)
                documents.append(document)
        return documents


def _paired(texts: Any, metadatas: list[dict[str, Any]] | None) -> tuple[list[str], list[dict[str, Any]]]:
    texts = listed(texts)
    metadatas = [{} for _ in texts] if metadatas is None else metadatas
    if len(metadatas) != len(texts):
        raise InvalidInputError(f"there are {len(texts)} texts, but {len(metadatas)} metadatas")
    return texts, metadatas


def _parts(documents: Iterable[Document]) -> tuple[list[str], list[dict[str, Any]]]:
    given = listed(documents)
    for document in given:
        if not isinstance(document, Document):
            raise InvalidInputError(f"documents must be Documents, not {type(document).__name__}: {document!r:.80}")
    return [document.page_content for document in given], [document.metadata for document in given]
