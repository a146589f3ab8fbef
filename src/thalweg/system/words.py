"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """`1 document`, `1,234 documents`; plural: where it is more than an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
