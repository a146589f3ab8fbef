"""Options that hold several values: given several times, or once with commas."""

from __future__ import annotations

from collections.abc import Iterable

import typer

MOST = 1 << 40

SUFFIXES = {"k": 1 << 10, "m": 1 << 20}


def names(values: Iterable[str] | None) -> list[str]:
    """All names, in order."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def number(text: str) -> int:
    """512, 16k (16384) or 1M (1048576).

    Raises:
        typer.BadParameter: no such number.
    """
    digits, factor = text.lower(), 1
    if digits[-1:] in SUFFIXES:
        digits, factor = digits[:-1], SUFFIXES[digits[-1]]
    if not digits.isdecimal() or len(digits) > 12 or not 0 < int(digits) * factor <= MOST:
        raise typer.BadParameter(
            f"{text!r:.60} is no number of tokens or texts: write 512, 16k (16384) or 1M (1048576), up to {MOST >> 20}M"
        )
    return int(digits) * factor


def numbers(values: Iterable[str] | None) -> list[int]:
    """All numbers, ascending, each once."""
    return sorted({number(name) for name in names(values)})
