"""Any model of sentence-transformers beside ours, for mteb."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb._create_dataloaders import _create_dataloader_from_texts
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from thalweg.integrations._peers import WORDS_PER_TOKEN, load_peer, word_chunks

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader


class Peer(SentenceTransformerEncoderWrapper):
    """A sentence-transformers model as mteb runs it: longer texts are cut.

    chunks: instead of that, a text's vector is the mean of the normalised vectors of its chunks, cut between words.
    """

    def __init__(self, name: str, *, chunks: bool = False, device: str | None = None) -> None:
        with warnings.catch_warnings():
            # mteb calls its own and sentence-transformers' functions by older names.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__(load_peer(name, device))
        self.chunk_words = int(self.model.max_seq_length * WORDS_PER_TOKEN) if chunks else None
        self.mteb_model_meta = self.mteb_model_meta.model_copy(
            update={
                "name": name if "/" in name and not Path(name).exists() else f"sentence-transformers/{Path(name).name}",
                "revision": _fingerprint(self.model),
                "experiment_kwargs": {"chunk_words": self.chunk_words} if chunks else None,
            }
        )

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Vectors (n, d) of a data loader's texts."""
        place: dict[str, Any] = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        if self.chunk_words is None:
            return super().encode(inputs, **place, prompt_type=prompt_type, **kwargs)
        pieces = [word_chunks(text, self.chunk_words) for batch in inputs for text in batch["text"]]
        loader = _create_dataloader_from_texts([piece for parts in pieces for piece in parts])
        vectors = np.asarray(super().encode(loader, **place, prompt_type=prompt_type, **kwargs))
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        ends = np.cumsum([len(parts) for parts in pieces])[:-1]
        return np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])


def _fingerprint(model: SentenceTransformer) -> str:
    digest = hashlib.sha256(str(model.max_seq_length).encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
