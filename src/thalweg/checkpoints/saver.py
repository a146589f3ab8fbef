"""A model → a folder that transformers, sentence-transformers and thalweg open."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from thalweg.checkpoints.auto_map import write_auto_map
from thalweg.checkpoints.embedding import EmbeddingConfig, ModuleClasses, save_embedding_config
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.formats import format_to_write
from thalweg.checkpoints.tokenizer_files import copy_tokenizer, write_tokenizer
from thalweg.checkpoints.tokens import TokenIds, read_token_ids
from thalweg.errors import InvalidInputError
from thalweg.models.quantized import quantization_of
from thalweg.pooling import POOLINGS


def save_checkpoint(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer_folder: str | Path | None,
    embedding: EmbeddingConfig | None,
    dtype: torch.dtype,
    load_dtype: torch.dtype | None = None,
    overwrite: bool = False,
    tokens: TokenIds | None = None,
    classes: ModuleClasses = "stock",
    readme: str | None = None,
) -> None:
    """Write a model in its family's transformers format.

    Args:
        model: of a class that a format can write; where its weights lie does not matter.
        folder: appears whole or not at all: it is written beside and renamed.
        tokenizer_folder: where its tokenizer lies, whose special tokens go into config.json.
        embedding: written as sentence-transformers files; None writes a plain language model without them.
        dtype: of the weights in the file; the few per-head parameters that go through exponentials stay float32.
        load_dtype: what config.json tells transformers to load them in, `dtype` if None. float32 over float16 weights
            halves the file and lets every library compute the same vectors.
        overwrite: replace the folder if it holds a checkpoint; all that lies in it goes.
        tokens: the special tokens; None takes what the tokenizer's files state.
        classes: whose classes sentence-transformers is to run it with.
        readme: the model card.

    Raises:
        InvalidInputError: the folder exists, the model's class has no format to write, or its weights are quantised.
    """
    format, folder = format_to_write(model), Path(folder)
    check_writable(model)
    config: Any = model.config
    assert format.config_file is not None  # every format that is written has one
    _check_free(folder, format.config_file, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.new")
    fresh.mkdir()
    try:
        write_model(
            fresh,
            model,
            tokenizer_folder=tokenizer_folder,
            embedding=embedding,
            dtype=dtype,
            load_dtype=load_dtype,
            tokens=tokens,
        )
        if embedding is not None:
            save_embedding_config(fresh, embedding, config.d_model, classes=classes)
        write_auto_map(fresh)
        if readme is not None:
            (fresh / "README.md").write_text(readme, encoding="utf-8")
        _replace(folder, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_writable(model: nn.Module) -> None:
    """Raises:
    InvalidInputError: the model's weights are quantised: the files of all formats hold them as they were.
    """
    quantization = quantization_of(model)
    if quantization is not None:
        raise InvalidInputError(
            f"a model with {quantization} weights cannot be saved; load it without quantize and save that: whoever "
            f"loads the folder can pass quantize={quantization!r}"
        )


def module_classes(
    model: nn.Module, tokenizer_folder: Path, embedding: EmbeddingConfig, *, stock: bool
) -> ModuleClasses:
    """Whose classes an exported folder names: stock ones where they are asked for, else both if both can run it.

    Raises:
        InvalidInputError: the stock modules were asked for and cannot give this model's vectors.
    """
    format = format_to_write(model)
    reason = None
    if not format.in_transformers:
        reason = f"transformers has no {format.family}"
    elif not (tokenizer_folder / "tokenizer.json").is_file():
        reason = "the model has no tokenizer.json"
    elif embedding.head is not None:
        reason = f"the vectors go through the head {embedding.head!r}"
    elif stock and embedding.lexicon is not None:
        reason = "the vectors hold a lexicon's dimensions"
    elif embedding.n_eos > 1 and POOLINGS[embedding.pooling].needs_eos:
        reason = f"the vector is a mean over {embedding.n_eos} end tokens"
    if stock and reason is not None:
        raise InvalidInputError(
            f"the stock modules of sentence-transformers cannot run this model, as {reason}; export it in the format "
            "'sentence-transformers', which thalweg runs"
        )
    return "stock" if stock else "either" if reason is None else "thalweg"


def write_model(
    folder: Path,
    model: nn.Module,
    *,
    tokenizer_folder: str | Path | None,
    embedding: EmbeddingConfig | None,
    dtype: torch.dtype,
    load_dtype: torch.dtype | None = None,
    tokens: TokenIds | None = None,
) -> None:
    """The weights, config.json and tokenizer of `save_checkpoint`, into a folder that exists.

    A file of weights that lies there is replaced whole: the model's own weights may be mapped from it.
    """
    format: Format = format_to_write(model)
    check_writable(model)
    config: Any = model.config
    assert format.config_file is not None
    if tokenizer_folder is not None:
        tokens = tokens or read_token_ids(Path(tokenizer_folder), {}, TokenIds(), config.vocab_size)
        _write_tokenizer(Path(tokenizer_folder), folder, tokens, embedding, config)
    _write_config(folder / format.config_file, config, format, tokens or TokenIds(), load_dtype or dtype)
    _write_weights(folder / "model.safetensors", model, format, dtype)
    shutil.copymode(folder / format.config_file, folder / "model.safetensors")  # safetensors' own is for the owner only


def _write_tokenizer(
    source: Path, folder: Path, tokens: TokenIds, embedding: EmbeddingConfig | None, config: Any
) -> None:
    if embedding is None:
        copy_tokenizer(source, folder)
        return
    prefix = [tokens.bos] if getattr(config, "force_bos_token_insert", False) and tokens.bos is not None else []
    suffix = [tokens.eos] * embedding.n_eos if embedding.append_eos and tokens.eos is not None else []
    as_text = embedding.special_tokens == "text"
    write_tokenizer(source, folder, tokens, prefix=prefix, suffix=suffix, special_tokens_are_text=as_text)


def _check_free(folder: Path, config_file: str, overwrite: bool) -> None:
    """Only a checkpoint is ever replaced: a slip in the path must not cost a home folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InvalidInputError(f"{folder} exists; choose another folder or overwrite it (overwrite=True, --overwrite)")
    if not (folder / config_file).is_file() or not (folder / "model.safetensors").is_file():
        raise InvalidInputError(f"{folder} exists and is no checkpoint, so it is not replaced; choose another folder")


def _write_config(path: Path, config: Any, format: Format, tokens: TokenIds, dtype: torch.dtype) -> None:
    assert format.write_config is not None
    written = {
        **format.write_config(config),
        # Explicit nulls: transformers' defaults would be ids of another vocabulary.
        "eos_token_id": tokens.eos,
        "bos_token_id": tokens.bos,
        "pad_token_id": tokens.pad,
        "dtype": str(dtype).removeprefix("torch."),
    }
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(path: Path, model: nn.Module, format: Format, dtype: torch.dtype) -> None:
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor_map, stored = format.stored_name(name)
        tensors[stored] = tensor_map.save(tensor.detach()).to("cpu", tensor_map.loaded_dtype(dtype)).contiguous()
    # transformers refuses files that do not say which library's axis order they are in.
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        save_file(tensors, fresh, metadata={"format": "pt"})
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


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
