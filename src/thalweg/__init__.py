"""Embed text of any length with recurrent language models: linear time, constant memory, nothing truncated.

import thalweg
model = thalweg.load()
vectors = model.encode(["a sentence", "a whole book …"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.errors import (
    CheckpointError,
    CorpusError,
    EndpointError,
    InvalidInputError,
    MeasurementError,
    MissingExtraError,
    NumericalError,
    ThalwegError,
    TokenizationError,
    UnsupportedModelError,
)
from thalweg.lazy_names import lazy_names
from thalweg.version import __version__ as __version__

if TYPE_CHECKING:
    from thalweg.corpus import Corpus, Hit, embed_corpus, open_corpus
    from thalweg.embedder.embedder import Embedder
    from thalweg.embedder.loading import load
    from thalweg.embedder.results import Embedding
    from thalweg.embedder.sections import Sections
    from thalweg.embedder.sessions.session import Session
    from thalweg.engine.memory_plan import MemoryPlan
    from thalweg.engine.results import Failure, Progress
    from thalweg.engine.schedule import Schedule

__all__ = [
    "CheckpointError",
    "Corpus",
    "CorpusError",
    "Embedder",
    "Embedding",
    "EndpointError",
    "Failure",
    "Hit",
    "InvalidInputError",
    "MeasurementError",
    "MemoryPlan",
    "MissingExtraError",
    "NumericalError",
    "Progress",
    "Schedule",
    "Sections",
    "Session",
    "ThalwegError",
    "TokenizationError",
    "UnsupportedModelError",
    "embed_corpus",
    "load",
    "open_corpus",
]


# What needs torch: `thalweg --help` stays instant.
__getattr__ = lazy_names(
    __name__,
    {
        "Corpus": ".corpus",
        "Embedder": ".embedder.embedder",
        "Embedding": ".embedder.results",
        "Failure": ".engine.results",
        "Hit": ".corpus",
        "MemoryPlan": ".engine.memory_plan",
        "Progress": ".engine.results",
        "Schedule": ".engine.schedule",
        "Sections": ".embedder.sections",
        "Session": ".embedder.sessions.session",
        "embed_corpus": ".corpus",
        "load": ".embedder.loading",
        "open_corpus": ".corpus",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
