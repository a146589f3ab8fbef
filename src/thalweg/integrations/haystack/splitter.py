"""A splitter whose chunks are embedded already."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

from thalweg.assets import MODEL_NAME
from thalweg.embedder.sections import Mode, Sections, Unit
from thalweg.errors import InvalidInputError
from thalweg.integrations._sections import Chunk, asplit_texts, checked_sections, split_texts
from thalweg.integrations._shared import needs_extra
from thalweg.integrations.haystack.settings import ThalwegEmbedder, document_list

with needs_extra("haystack", "haystack"):
    from haystack import Document, component
    from haystack.utils import deserialize_callable, serialize_callable


@component
class ThalwegDocumentSplitter(ThalwegEmbedder):
    """Splits documents of any length into sections, and embeds them in the same pass, each in its document.

    The chunks have their `embedding`, so no embedder is needed between this and a writer. Joined, the chunks of a
    document are its text. Their `meta` is a copy of the document's with `source_id`, `split_id`, `split_idx_start` and
    `page_number`, as `DocumentSplitter` has them; it is no part of what is embedded.
    """

    shows_progress = True

    def __init__(
        self,
        model: str = MODEL_NAME,
        *,
        by: Unit | Callable[[str], Iterable[int]] = "tokens",
        every: int | None = None,
        mode: Mode | None = None,
        look_ahead: int = 0,
        section_size: int | None = None,
        **settings: Any,
    ) -> None:
        """Nothing is loaded before `warm_up` or the first `run`.

        Args:
            by, every, mode, look_ahead: see `thalweg.Sections`; `by` is a unit or a function, and no list of positions.
            section_size: short for `by="tokens", every=section_size`.
            model, settings: the arguments of `ThalwegTextEmbedder`, but for `suffix`.

        Raises:
            InvalidInputError: an argument that cannot be.
        """
        ThalwegEmbedder.__init__(self, model, **settings)  # not super(): `component` builds another class from this one
        if self.suffix:
            raise InvalidInputError(f"suffix={self.suffix!r} would be part of the last section only; leave it out")
        self.by = by
        self.every = every
        self.mode = mode
        self.look_ahead = look_ahead
        self.section_size = section_size
        self._sections()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """{"documents": the chunks, in order}. Raises TypeError for anything but Documents, InvalidInputError for one
        without text."""
        chunks = split_texts(self.loaded(), _texts(documents), self._sections(), self.options())
        return self._split(documents, chunks)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """`run` without blocking the event loop."""
        chunks = await asplit_texts(self.loaded(), _texts(documents), self._sections(), self.options())
        return self._split(documents, chunks)

    def to_dict(self) -> dict[str, Any]:
        """See `ThalwegTextEmbedder`; a function is written by its name, which only one at the top of a module has."""
        stored = ThalwegEmbedder.to_dict(self)
        if callable(self.by):
            stored["init_parameters"]["by"] = {"function": serialize_callable(self.by)}
        return stored

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> dict[str, Any]:
        settings = ThalwegEmbedder.restored(stored)
        if isinstance(settings.get("by"), dict):
            settings["by"] = deserialize_callable(settings["by"]["function"])
        return settings

    @classmethod
    def setting_names(cls) -> list[str]:
        return [*ThalwegEmbedder.setting_names(), "by", "every", "mode", "look_ahead", "section_size"]

    def _sections(self) -> Sections:
        return checked_sections(self.by, self.every, self.mode, self.look_ahead, self.section_size)

    def _split(self, documents: list[Document], chunks: list[list[Chunk]]) -> dict[str, list[Document]]:
        vectors = iter(self.quantized([chunk.vector.tolist() for of_one in chunks for chunk in of_one]))
        found = []
        for document, of_one in zip(documents, chunks, strict=True):
            page = 1
            for number, chunk in enumerate(of_one):
                meta = {
                    **deepcopy(document.meta),
                    "source_id": document.id,
                    "page_number": page + _pages_at_front(chunk.text),
                    "split_id": number,
                    "split_idx_start": chunk.start,
                }
                # The id is that of text and meta: it stays the same where the last bits of a vector do not.
                found.append(replace(Document(content=chunk.text, meta=meta), embedding=next(vectors)))
                page += chunk.text.count("\f")
        return {"documents": found}


def _pages_at_front(text: str) -> int:
    """Page breaks before the first other character; 0 where there is none."""
    rest = text.lstrip("\f")
    return len(text) - len(rest) if rest else 0


def _texts(documents: list[Document]) -> list[str]:
    texts = []
    for document in document_list(documents, "ThalwegDocumentSplitter"):
        if document.content is None:
            raise InvalidInputError(f"document {document.id} has no text (its content is None); leave it out")
        texts.append(document.content)
    return texts
