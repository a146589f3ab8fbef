"""An embedding and a node parser for LlamaIndex: texts of any length, none cut.

from thalweg.integrations.llama_index import ThalwegEmbedding, ThalwegNodeParser
model = ThalwegEmbedding()
parser = ThalwegNodeParser(model, by="paragraph")
index = VectorStoreIndex.from_documents(documents, transformations=[parser], embed_model=model)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.assets import MODEL_NAME
from thalweg.embedder.sections import Sections
from thalweg.errors import InvalidInputError
from thalweg.integrations._sections import Chunk, asplit_texts, check_precision, checked_sections, split_texts
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
    from llama_index.core.bridge.pydantic import (
        ConfigDict,
        Field,
        PrivateAttr,
        SerializeAsAny,
        field_serializer,
        field_validator,
    )
    from llama_index.core.node_parser import NodeParser
    from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
    from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode

__all__ = ["ThalwegEmbedding", "ThalwegNodeParser"]


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


class ThalwegNodeParser(NodeParser):
    """Splits documents of any length into sections, and embeds them in the same pass, each in its document.

    The nodes have their `embedding`, so an index or a pipeline embeds none of them again. Joined, the nodes of a
    document are its text, and `start_char_idx` and `end_char_idx` say where each stands. Metadata is kept on the nodes
    and is no part of what is embedded.

    Raises InvalidInputError for an argument that cannot be.
    """

    model_config = ConfigDict(extra="forbid")

    embed_model: SerializeAsAny[ThalwegEmbedding] = Field(description="The model and its options.")
    by: Any = Field(default="tokens", description="tokens, paragraph, sentence, heading, or a function.")
    every: int | None = Field(default=None, description="So many of these make a section; see thalweg.Sections.")
    mode: str | None = Field(default=None, description="mean, prefix or isolated; by default as the model pools.")
    look_ahead: int = Field(default=0, description="Tokens after a section that count as well.")
    section_size: int | None = Field(default=None, description="Tokens of a section: short for by='tokens', every=….")

    def __init__(self, embed_model: ThalwegEmbedding | None = None, **kwargs: Any) -> None:
        super().__init__(**{"embed_model": ThalwegEmbedding() if embed_model is None else embed_model, **kwargs})
        self._sections()
        check_precision(self.embed_model.encode_kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "ThalwegNodeParser"

    @field_validator("embed_model", mode="before")
    @classmethod
    def _restored(cls, embed_model: Any) -> Any:
        return ThalwegEmbedding.from_dict(embed_model) if isinstance(embed_model, dict) else embed_model

    @field_validator("id_func", mode="before")
    @classmethod
    def _named(cls, id_func: Any) -> Any:
        """The base writes a function by its name, and reads none; that of the default one can be known."""
        named = isinstance(id_func, dict) and id_func.get("id_func_name") == default_id_func.__name__
        return default_id_func if named else id_func

    @field_serializer("by")
    def _name(self, by: Any) -> str:
        """A function by its name. Pipelines compare what is serialised, so another function must have another name."""
        if isinstance(by, str):
            return by
        name = f"{by.__module__}.{getattr(by, '__qualname__', '<object>')}"
        if "<" in name:
            raise InvalidInputError(f"by={name} cannot be serialised; define the function at the top of a module")
        return name

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        return self._built(nodes, split_texts(self.embed_model._shared, *self._work(nodes, show_progress)))

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return self._built(nodes, await asplit_texts(self.embed_model._shared, *self._work(nodes, show_progress)))

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:
        """As the base does, which looks for each text in its document and may find it too early."""
        texts = [node for node in nodes if isinstance(node, TextNode)]
        spans = [(node.start_char_idx, node.end_char_idx) for node in texts]
        nodes = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        for node, (start, end) in zip(texts, spans, strict=True):
            node.start_char_idx, node.end_char_idx = start, end
        return nodes

    def _sections(self) -> Sections:
        return checked_sections(self.by, self.every, self.mode, self.look_ahead, self.section_size)

    def _work(self, nodes: Sequence[BaseNode], show_progress: bool) -> tuple[list[str], Sections, dict[str, Any]]:
        options = self.embed_model._options(self.embed_model.text_instruction)
        return (
            [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            self._sections(),
            {**options, "show_progress_bar": show_progress or options["show_progress_bar"]},
        )

    def _built(self, parents: Sequence[BaseNode], chunks: list[list[Chunk]]) -> list[BaseNode]:
        built: list[BaseNode] = []
        for parent, of_parent in zip(parents, chunks, strict=True):
            nodes = build_nodes_from_splits([chunk.text for chunk in of_parent], parent, id_func=self.id_func)
            for node, chunk in zip(nodes, of_parent, strict=True):
                node.embedding = chunk.vector.tolist()
                node.start_char_idx, node.end_char_idx = chunk.start, chunk.end
            built += nodes
        return built
