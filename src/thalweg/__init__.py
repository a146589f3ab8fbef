"""Embed text of any length with recurrent language models: linear time, constant memory, nothing truncated.

import thalweg
model = thalweg.load()
vectors = model.encode(["a sentence", "a whole book …"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thalweg.errors import (
    CheckpointError,
    CorpusError,
    InvalidInputError,
    MissingExtraError,
    ThalwegError,
    TokenizationError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from thalweg.embedder import Embedder, Embedding, load
    from thalweg.engine.memory_plan import MemoryPlan
    from thalweg.engine.results import Failure, Progress
    from thalweg.engine.schedule import Schedule

__version__ = "0.1.0"

_LAZY = {
    "Embedder": "thalweg.embedder",
    "Embedding": "thalweg.embedder",
    "load": "thalweg.embedder",
    "Failure": "thalweg.engine.results",
    "Progress": "thalweg.engine.results",
    "Schedule": "thalweg.engine.schedule",
    "MemoryPlan": "thalweg.engine.memory_plan",
}

__all__ = [
    "CheckpointError",
    "CorpusError",
    "Embedder",
    "Embedding",
    "Failure",
    "InvalidInputError",
    "MemoryPlan",
    "MissingExtraError",
    "Progress",
    "Schedule",
    "ThalwegError",
    "TokenizationError",
    "UnsupportedModelError",
    "load",
]


def __getattr__(name: str) -> Any:
    """Public names whose modules need torch are imported when first used: `thalweg --help` stays instant."""
    if name not in _LAZY:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
