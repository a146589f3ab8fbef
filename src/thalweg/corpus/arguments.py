"""Arguments that several functions of this package take."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, TypeAlias

from thalweg.embedder.embedder import Embedder
from thalweg.errors import InvalidInputError

PathName: TypeAlias = "str | PathLike[str]"


def check_loading(model: Any, options: dict[str, Any]) -> None:
    """
    Raises:
        InvalidInputError: no model, or an `Embedder` with options of `load`.
    """
    if isinstance(model, Embedder):
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InvalidInputError(f"{', '.join(given)}: of no use with an Embedder; pass them to thalweg.load")
    elif not isinstance(model, str | PathLike | None):
        raise InvalidInputError(f"model must be a name, a folder or an Embedder, got {model!r:.80}")


def as_names(name: str, given: Any) -> list[str]:
    """One path or several, as str.

    Raises:
        InvalidInputError: none, or something else.
    """
    each = [given] if isinstance(given, str | PathLike) else given
    if isinstance(each, bytes | dict) or not hasattr(each, "__iter__"):
        raise InvalidInputError(f"{name} must be a path or a list of paths, got {given!r:.80}")
    names = list(each)
    for value in names:
        if not isinstance(value, str | PathLike) or not isinstance(fspath(value), str):
            raise InvalidInputError(f"{name} must be a path or a list of paths, but one is {value!r:.80}")
    if not names:
        raise InvalidInputError(f"{name} is an empty list")
    return [str(fspath(value)) for value in names]
