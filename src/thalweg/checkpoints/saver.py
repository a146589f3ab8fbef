"""A model → a folder that transformers, sentence-transformers and thalweg open."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from thalweg.checkpoints.embedding import EmbeddingConfig, save_embedding_config
from thalweg.checkpoints.layout import Layout
from thalweg.checkpoints.layouts import layout_to_write
from thalweg.checkpoints.tokens import TOKENIZER_FILES, TokenIds, read_token_ids
from thalweg.errors import InvalidInputError


def save_checkpoint(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer_folder: str | Path | None,
    embedding: EmbeddingConfig | None,
    dtype: torch.dtype,
    load_dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model in its family's transformers format.

    Args:
        model: of a class that a layout can write; where its weights lie does not matter.
        folder: appears whole or not at all: it is written beside and renamed.
        tokenizer_folder: its tokenizer files are copied, and their special tokens go into config.json.
        embedding: written as sentence-transformers files; None writes a plain language model without them.
        dtype: of the weights in the file; the few per-head parameters that go through exponentials stay float32.
        load_dtype: what config.json tells transformers to load them in, `dtype` if None. float32 over float16 weights
            halves the file and lets every library compute the same vectors.
        overwrite: replace the folder if it holds a checkpoint; all that lies in it goes.

    Raises:
        InvalidInputError: the folder exists, or the model's class has no layout to write.
    """
    layout, folder = layout_to_write(model), Path(folder)
    config: Any = model.config
    assert layout.config_file is not None  # every format that is written has one
    _check_free(folder, layout.config_file, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.new")
    fresh.mkdir()
    try:
        tokens = TokenIds()
        if tokenizer_folder is not None:
            _copy_tokenizer(Path(tokenizer_folder), fresh)
            tokens = read_token_ids(fresh, {}, TokenIds(), config.vocab_size)
        _write_config(fresh / layout.config_file, config, layout, tokens, load_dtype or dtype)
        _write_weights(fresh / "model.safetensors", model, layout, dtype)
        if embedding is not None:
            save_embedding_config(fresh, embedding, config.d_model)
        _replace(folder, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _check_free(folder: Path, config_file: str, overwrite: bool) -> None:
    """Only a checkpoint is ever replaced: a slip in the path must not cost a home folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InvalidInputError(f"{folder} exists; choose another folder or pass overwrite=True")
    if not (folder / config_file).is_file() or not (folder / "model.safetensors").is_file():
        raise InvalidInputError(f"{folder} exists and is no checkpoint, so it is not replaced; choose another folder")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    files = [file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()]
    copied = [shutil.copyfile(file, folder / file.name) for file in files]
    if not copied:
        raise InvalidInputError(f"{source} holds no tokenizer file; looked for {', '.join(TOKENIZER_FILES)}")


def _write_config(path: Path, config: Any, layout: Layout, tokens: TokenIds, dtype: torch.dtype) -> None:
    assert layout.write_config is not None
    written = {
        **layout.write_config(config),
        # Explicit nulls: transformers' defaults would be ids of another vocabulary.
        "eos_token_id": tokens.eos,
        "bos_token_id": tokens.bos,
        "pad_token_id": tokens.pad,
        "dtype": str(dtype).removeprefix("torch."),
    }
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(path: Path, model: nn.Module, layout: Layout, dtype: torch.dtype) -> None:
    tensors = {}
    for name, tensor in model.state_dict().items():
        rename, stored = layout.stored_name(name)
        tensors[stored] = rename.save(tensor.detach()).to("cpu", rename.loaded_dtype(dtype)).contiguous()
    # transformers refuses files that do not say which library's axis order they are in.
    save_file(tensors, path, metadata={"format": "pt"})


def _replace(folder: Path, fresh: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    old = fresh.with_suffix(".old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
