"""A loaded model to a folder that others can open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from thalweg.checkpoints import Checkpoint, TokenIds, model_card, module_classes, save_checkpoint, stated_dtype
from thalweg.embedder.dtypes import Dtype, dtype_of_products, torch_dtype
from thalweg.errors import InvalidInputError
from thalweg.version import __version__

ExportFormat: TypeAlias = Literal["sentence-transformers", "stock"]


def export(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    name: str,
    dimension: int,
    format: ExportFormat,
    dtype: Dtype,
    overwrite: bool,
    edit_card: Callable[[str], str] | None,
) -> None:
    """Write a loaded model; see `Embedder.save`. `dimension`: width of its vectors."""
    if format not in get_args(ExportFormat):
        raise InvalidInputError(f"format must be one of {', '.join(get_args(ExportFormat))}, not {format!r}")
    current = dtype_of_products(checkpoint.model)
    stored = torch_dtype(dtype) if dtype not in (None, "auto") else current
    assert isinstance(stored, torch.dtype)
    embedding = checkpoint.embedding
    classes = module_classes(checkpoint.model, checkpoint.folder, embedding, stock=format == "stock")
    unchanged = stored == current == checkpoint.weights_dtype
    card = model_card(
        Path(name).resolve().name if Path(name).exists() else name,
        family=checkpoint.family,
        n_parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        dtype=str(stored).removeprefix("torch."),
        dimension=dimension,
        embedding=embedding,
        classes=classes,
        origin=checkpoint.folder,
        version=__version__,
    )
    save_checkpoint(
        checkpoint.model,
        folder,
        tokenizer_folder=checkpoint.folder,
        embedding=embedding,
        dtype=stored,
        load_dtype=stated_dtype(checkpoint.folder) if unchanged else None,
        overwrite=overwrite,
        tokens=TokenIds(checkpoint.eos_token_id, checkpoint.bos_token_id, checkpoint.pad_token_id),
        classes=classes,
        readme=edit_card(card) if edit_card else card,
    )
