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
from thalweg.version import __version__ as __version__

if TYPE_CHECKING:
    from thalweg.embedder.embedder import Embedder, load
    from thalweg.embedder.results import Embedding
    from thalweg.engine.memory_plan import MemoryPlan
    from thalweg.engine.results import Failure, Progress
    from thalweg.engine.schedule import Schedule

_LAZY = {
    "Embedder": "thalweg.embedder.embedder",
    "Embedding": "thalweg.embedder.results",
    "load": "thalweg.embedder.embedder",
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
