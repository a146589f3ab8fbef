"""What the splitters for LangChain, LlamaIndex and Haystack have in common: documents cut into sections, each with the
vector that it has in its document.

The vectors are those of `Embedder.encode_stream(documents, sections=…)`, with the model's prompt for documents. So one
pass both splits and embeds, and what stores the chunks has nothing left to embed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.checks import whole_number
from thalweg.embedder.given import given_texts
from thalweg.embedder.progress_bar import progress_bar
from thalweg.embedder.sections import Sections
from thalweg.errors import InvalidInputError
from thalweg.integrations._shared import SharedModel, effective
from thalweg.pooling.vectors import to_precision

log = logging.getLogger("thalweg")

_OF_ENCODE = ("show_progress_bar", "precision")
"""Options of `Embedder.encode` that `encode_stream` does not have."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A section of a document: its text, its characters there, and its vector (d,)."""

    text: str
    start: int
    end: int
    vector: npt.NDArray[np.generic]


def checked_sections(
    by: Any, every: int | None, mode: Any, look_ahead: int, section_size: int | None = None
) -> Sections:
    """How a splitter is to cut its documents. section_size: short for `by="tokens", every=section_size`.

    Raises:
        InvalidInputError: an argument that cannot be (see `thalweg.Sections`), or positions, which are those of one
            text.
    """
    if section_size is not None:
        if by != "tokens" or every is not None:
            raise InvalidInputError(
                f"section_size={section_size!r} is short for by='tokens', every={section_size!r}: leave it out, or "
                f"by={by!r:.80} and every={every!r}"
            )
        every = whole_number("section_size", section_size, 1)
    sections = Sections(by, every, mode, look_ahead)
    if sections.of_one_text:
        raise InvalidInputError(
            f"by={by!r:.80} are positions in one text, but a splitter gets many; pass a function that finds them"
        )
    return sections


def check_precision(options: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for a precision that depends on which vectors are rounded together."""
    precision = options.get("precision")
    if precision in ("int8", "uint8"):
        raise InvalidInputError(
            f"precision={precision!r} has the range of the vectors of each call, so that sections could not be "
            "compared; use 'float32' or 'ubinary' and let the store quantise"
        )


def split_texts(
    model: SharedModel, texts: Sequence[str], sections: Sections, options: Mapping[str, Any]
) -> list[list[Chunk]]:
    """The sections of each text, in order; a text of any length, also an empty one, has at least one.

    Args:
        options: those of `Embedder.encode`.

    Raises:
        InvalidInputError: a text that is no str.
    """
    texts = given_texts(texts)
    options = effective(options)
    embedder = model.embedder
    if options.get("prompt") is None and options.get("prompt_name") is None:
        options["prompt_name"] = embedder.prompt_name_of("document")
    precision = options.get("precision", "float32")
    chunks: list[list[Chunk]] = [[] for _ in texts]
    cut = set()
    with progress_bar(len(texts), options.get("show_progress_bar", False)) as report:
        passed_on = {name: value for name, value in options.items() if name not in _OF_ENCODE}
        for found in embedder.encode_stream(texts, sections=sections, progress=report, **passed_on):
            text = texts[found.index][found.char_start : found.char_end]
            vector = to_precision(found.vector[None], precision)[0]
            chunks[found.index].append(Chunk(text, found.char_start, found.char_end, vector))
            if found.truncated:
                cut.add(found.index)
    if cut:
        log.warning("max_length=%s cut %d of %d texts", options["max_length"], len(cut), len(texts))
    return chunks


async def asplit_texts(
    model: SharedModel, texts: Sequence[str], sections: Sections, options: Mapping[str, Any]
) -> list[list[Chunk]]:
    """`split_texts` in a thread of the model's; a call that is cancelled stops at the next step."""
    return await model.in_thread(split_texts, model, texts, sections, options)
