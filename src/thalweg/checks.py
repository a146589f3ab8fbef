"""Arguments that many functions have: what is wrong is quoted, with what it must be; names that last."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

from thalweg.errors import InvalidInputError


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int.

    Raises:
        InvalidInputError: it is no whole number, or not in least..most.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidInputError(f"{name} must be a whole number, got {value!r:.80}")
    number = int(value)
    if most is not None and not least <= number <= most:
        raise InvalidInputError(f"{name} must be in {least}..{most}, got {number}")
    if number < least:
        raise InvalidInputError(f"{name} must be at least {least}, got {number}")
    return number


def text(name: str, value: Any) -> str:
    """The value, which must be a str.

    Raises:
        InvalidInputError: it is none.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a str, got {type(value).__name__}: {value!r:.80}")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    Raises:
        InvalidInputError: the value is none of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"{name} must be one of {', '.join(choices)}, got {value!r:.80}")


def lasting_name(model: str | Path | None) -> str | None:
    """A name that finds the model from any folder: a local one's absolute path."""
    if model is None:
        return None
    return str(Path(model).resolve()) if str(model) and Path(model).exists() else str(model)
