"""Errors that say that memory is short: Python's, NumPy's, and those of torch for the CPU and for CUDA."""

from __future__ import annotations

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so. torch has no class of its own for it on the CPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def one_line(error: BaseException) -> str:
    """The first line of what it says, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
