"""Any embedder that mining can use: one of thalweg, or a `SentenceTransformer`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.embedder.embedder import Embedder
from thalweg.embedder.loaded import PROMPT_NAMES, Side
from thalweg.errors import InvalidInputError
from thalweg.pooling.vectors import FloatArray


class MiningEmbedder:
    """Texts to vectors of length 1, whatever the library.

    Raises:
        InvalidInputError: the model is of neither library.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        if isinstance(model, Embedder):
            self.dimension, self.fingerprint = model.dimension, model.fingerprint
            self._options: dict[str, Any] = {}
        elif hasattr(model, "get_embedding_dimension") and hasattr(model, "encode_document"):
            self.dimension, self.fingerprint = int(model.get_embedding_dimension()), _fingerprint(model)
            self._options = {"convert_to_numpy": True}
        else:
            raise InvalidInputError(
                f"model must be what thalweg.load gives, or a SentenceTransformer, not {type(model).__name__}"
            )

    def prompt(self, side: Side) -> str:
        """What the model itself puts before queries or documents."""
        prompts: dict[str, str] = self._model.prompts
        return next((prompts[name] for name in PROMPT_NAMES[side] if name in prompts), "")

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(n, dimension) float32, of length 1. Prompts are in the texts."""
        vectors = self._model.encode(
            list(texts), prompt="", normalize_embeddings=True, show_progress_bar=False, **self._options
        )
        return np.asarray(vectors, np.float32)


def _fingerprint(model: Any) -> str:
    """16 hexadecimal digits that tell a torch model from others: names, shapes and some values of its weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:1000].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
