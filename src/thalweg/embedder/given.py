"""What callers pass for texts, told apart from what only looks like texts: the mistakes that would embed something else
without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from thalweg.errors import InvalidInputError


def given_texts(texts: Any) -> list[str]:
    """The texts of one call: a str alone, or any iterable of str (a list, a Series, an array, a generator).

    Raises:
        InvalidInputError: anything else, with the call that was probably meant.
    """
    if isinstance(texts, str):
        return [texts]
    _refuse_container(texts, "encode", "texts")
    batch = list(texts)
    for number, text in enumerate(batch):
        if not isinstance(text, str):
            raise InvalidInputError(
                f"texts[{number}] must be a str, got {type(text).__name__}: {_shown(text)}{_hint(text)}"
            )
    return batch


def given_documents(documents: Any) -> Iterable[Any]:
    """The documents of `encode_stream`: any iterable but those that are one document, or none.

    Raises:
        InvalidInputError: one text, a mapping, a table, or nothing that can be iterated.
    """
    if isinstance(documents, str | bytes | bytearray) or hasattr(documents, "read"):
        raise InvalidInputError(
            f"encode_stream takes an iterable of documents, got one {type(documents).__name__}: {_shown(documents)}; "
            "put it in a list: encode_stream([document])"
        )
    _refuse_container(documents, "encode_stream", "documents")
    found: Iterable[Any] = documents
    return found


def refused(document: Any) -> InvalidInputError | None:
    """Why this is no document, or None for one: a str, bytes, an open file, or an iterable of pieces of text."""
    kind = f"a document must be a str, an open file or an iterable of pieces, got {type(document).__name__}: "
    if isinstance(document, tuple):
        return InvalidInputError(f"{kind}{_shown(document)}; of (id, text) pairs pass the texts only")
    if isinstance(document, Mapping):
        return InvalidInputError(f"{kind}{_shown(document)}; pass its text, such as row['text']")
    if isinstance(document, PathLike):
        return InvalidInputError(f"{kind}{_shown(document)}{_hint(document)}")
    if getattr(document, "closed", False):
        return InvalidInputError(f"the file {getattr(document, 'name', document)!r:.80} is closed; open it again")
    if not isinstance(document, str | bytes | bytearray | memoryview | Iterable) and not hasattr(document, "read"):
        return InvalidInputError(f"{kind}{_shown(document)}")
    return None


def _refuse_container(texts: Any, function: str, name: str) -> None:
    if isinstance(texts, Mapping):
        raise InvalidInputError(
            f"{name} must not be a {type(texts).__name__}, of which only the keys would be embedded; pass its values: "
            f"{function}(list({name}.values()))"
        )
    if hasattr(texts, "columns") and hasattr(texts, "shape"):
        raise InvalidInputError(
            f"{name} must not be a {type(texts).__name__}, of which only the names of its columns would be embedded; "
            f'pass one column: {function}({name}["text"])'
        )
    if isinstance(texts, bytes | bytearray | PathLike) or not isinstance(texts, Iterable):
        raise InvalidInputError(
            f"{name} must be a str or an iterable of str, got {type(texts).__name__}: {_shown(texts)}{_hint(texts)}"
        )


def _hint(value: Any) -> str:
    if isinstance(value, PathLike):
        return "; a path is not a text: open it, and pass the file to encode_stream or what it holds to encode"
    if isinstance(value, bytes | bytearray):
        return "; decode it first: data.decode()"
    return ""


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
