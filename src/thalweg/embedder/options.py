"""The options of `Embedder.encode`, `encode_sections` and `encode_stream`, for functions that pass them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch

from thalweg.embedder.resumable import Checkpoints
from thalweg.embedder.sections import Sections
from thalweg.engine.results import Progress
from thalweg.pooling.vectors import Precision
from thalweg.tokenization.backend import SpecialTokens


class EncodeOptions(TypedDict, total=False):
    """See `Embedder.encode`."""

    prompt: str | None
    prompt_name: str | None
    show_progress_bar: bool
    precision: Precision
    normalize_embeddings: bool | None
    truncate_dim: int | None
    max_length: int | None
    vertical_chunk_size: int | None
    max_tokens_per_step: int | None
    max_in_flight: int | None
    batch_size: int | None
    convert_to_tensor: bool
    device: str | torch.device | None
    special_tokens: SpecialTokens | None
    max_uncut_chars: int | None
    share_prefixes: bool
    cache_salt: str | None


class StreamOptions(TypedDict, total=False):
    """See `Embedder.encode_sections`."""

    prompt: str | None
    prompt_name: str | None
    normalize_embeddings: bool | None
    truncate_dim: int | None
    max_length: int | None
    vertical_chunk_size: int | None
    max_tokens_per_step: int | None
    max_in_flight: int | None
    progress: Callable[[Progress], None] | None
    special_tokens: SpecialTokens | None
    max_uncut_chars: int | None


class DocumentOptions(StreamOptions, total=False):
    """See `Embedder.encode_stream`."""

    section_size: int | None
    sections: Sections | None
    ordered: bool
    share_prefixes: bool
    cache_salt: str | None
    checkpoints: Checkpoints | None
