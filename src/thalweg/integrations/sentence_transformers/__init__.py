"""thalweg inside sentence-transformers.

from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, trust_remote_code=True)  # a folder that `thalweg export` wrote

or, for any model that thalweg reads, whatever its format and with none of its code run:

from thalweg.integrations.sentence_transformers import load
model = load("org/name")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import MissingExtraError

try:
    import sentence_transformers
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "thalweg.integrations.sentence_transformers needs: pip install 'thalweg[sentence-transformers]'"
    ) from error

from sentence_transformers.sentence_transformer.modules import Normalize

import thalweg
from thalweg.integrations.sentence_transformers.lexicon import LexiconModule
from thalweg.integrations.sentence_transformers.module import ThalwegModule
from thalweg.integrations.sentence_transformers.pooling import Pooling
from thalweg.integrations.sentence_transformers.state_passing import StatePassingCallback

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from thalweg.embedder.dtypes import Dtype
    from thalweg.embedder.embedder import Embedder
    from thalweg.gradients.state_passing import StatePassing
    from thalweg.gradients.steps import Checkpointing
    from thalweg.tokenization.backend import SpecialTokens

__all__ = ["LexiconModule", "Pooling", "StatePassingCallback", "ThalwegModule", "from_embedder", "load"]


def load(
    name_or_path: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: Dtype = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
    head: str | None = None,
    special_tokens: SpecialTokens | None = None,
    max_uncut_chars: int | None = None,
    checkpointing: Checkpointing | None = None,
    state_passing: StatePassing | None = None,
    **options: Any,
) -> SentenceTransformer:
    """A `SentenceTransformer` over any model that `thalweg.load` reads; the arguments are those of `thalweg.load`.

    No code of a folder or repository is run, so no `trust_remote_code` is needed. `checkpointing` and `state_passing`
    are for training (see `ThalwegModule`). `options` go to `SentenceTransformer`: `prompts`, `truncate_dim`, …
    """
    embedder = thalweg.load(
        name_or_path,
        device=device,
        dtype=dtype,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        head=head,
        special_tokens=special_tokens,
        max_uncut_chars=max_uncut_chars,
    )
    return from_embedder(embedder, checkpointing=checkpointing, state_passing=state_passing, **options)


def from_embedder(
    embedder: Embedder,
    *,
    checkpointing: Checkpointing | None = None,
    state_passing: StatePassing | None = None,
    **options: Any,
) -> SentenceTransformer:
    """A `SentenceTransformer` that shares the weights of a loaded model, which can be trained from then on."""
    config = embedder.embedding_config
    first = ThalwegModule(embedder, checkpointing=checkpointing, state_passing=state_passing)
    modules = [first, Pooling.of(config, embedder.model.d_model)]
    if config.lexicon is not None:
        modules.append(LexiconModule(config.lexicon, embedder.model.d_model))
    if config.normalize:
        modules.append(Normalize())
    settings: dict[str, Any] = {
        "prompts": dict(config.prompts),
        "default_prompt_name": config.default_prompt_name,
        "similarity_fn_name": config.similarity,
        "device": str(embedder.model.device),
    }
    return sentence_transformers.SentenceTransformer(modules=modules, **settings | options)
