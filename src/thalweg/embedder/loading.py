"""A folder or hub id to an `Embedder`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from thalweg.assets import DEFAULT, MODEL_NAME, model_folder
from thalweg.checkpoints import load_checkpoint, resolve
from thalweg.checkpoints.describe import describe_checkpoint
from thalweg.embedder.devices import check_device
from thalweg.embedder.dtypes import Dtype, torch_dtype
from thalweg.embedder.embedder import Embedder
from thalweg.errors import InvalidInputError
from thalweg.models.quantized import Quantization
from thalweg.tokenization.backend import SpecialTokens


def load(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
    head: str | None = None,
    quantize: Quantization | None = None,
    special_tokens: SpecialTokens | None = None,
    max_uncut_chars: int | None = None,
) -> Embedder:
    """Load a model to embed with.

    Args:
        name_or_path: a local folder or a hub id `org/name`, in any of the formats of `docs/checkpoints.md`, or of
            several RWKV-7 models one file (`folder/model.pth`, `org/name/model.pth`); None is the small English model
            that ships with the package, and so are "thalweg-small-en" and "default", where no folder is called so.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes CUDA where there is one, else the CPU.
        dtype: of the weights and matrix products: "float32", "bfloat16", "float16", "auto" (the file's); None is
            float32 on the CPU and the file's elsewhere. States and sums are float32 in any case.
        revision: branch, tag or commit of a hub id.
        token: for private and gated repositories; None takes the stored login or HF_TOKEN.
        cache_dir: of downloads, instead of huggingface_hub's.
        local_files_only: True never touches the network.
        head: which of the embedding heads of a model that has several (see `Embedder.heads`) its vectors go through;
            vectors of different heads must not be compared. None is the model's own choice.
        quantize: "int8" keeps the wide weights in 8 bits and multiplies in integers, for speed; "int4" keeps them in 4
            bits, for memory (`docs/quantization.md`). On the CPU only, without gradients. It is the model that is
            quantised; of vectors that is `precision`.
        special_tokens: what the literal of a special token ("<|endoftext|>") in a text or prompt is read as: "token" is
            the token itself, as in transformers, so that texts of strangers can end a document in its middle; "text"
            is the characters that it has. None is what the folder says; "token" if it says nothing.
        max_uncut_chars: most characters of a text in memory where it cannot be tokenised in parts (1,048,576); a longer
            one is refused. Such a text needs 200 to 650 bytes a character. See `docs/checkpoints.md`.

    Raises:
        CheckpointError: the model cannot be found or loaded; the message says why and what to do.
        InvalidInputError: the model has no such head, or there is no such quantisation on this device.
    """
    source, name = _source(name_or_path)
    folder = resolve(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    place = _place(device, quantize)
    checkpoint = load_checkpoint(folder, dtype=torch_dtype(dtype), device=place, quantize=quantize)
    return Embedder(checkpoint, name=name, head=head, special_tokens=special_tokens, max_uncut_chars=max_uncut_chars)


def describe(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
    revision: str | None = None,
    quantize: Quantization | None = None,
) -> Embedder:
    """What `load` would give, without its weights: of a hub id only small files and headers are downloaded.

    It says what the model is and plans memory; it cannot embed. See `describe_checkpoint`.
    """
    source, name = _source(name_or_path)
    checkpoint = describe_checkpoint(
        source, dtype=torch_dtype(dtype), device=_place(device, quantize), revision=revision, quantize=quantize
    )
    return Embedder(checkpoint, name=name)


def _source(name_or_path: str | Path | None) -> tuple[str | Path, str]:
    """Where a model comes from, and what it is called."""
    if not isinstance(name_or_path, str | PathLike | None):
        raise InvalidInputError(
            f"name_or_path must be a folder, a file or a hub id, got {type(name_or_path).__name__}: "
            f"{name_or_path!r:.80}"
        )
    if name_or_path is None or (name_or_path in (MODEL_NAME, DEFAULT) and not Path(name_or_path).exists()):
        return model_folder(), MODEL_NAME
    return name_or_path, str(name_or_path)


def _place(device: str | torch.device | None, quantize: Quantization | None) -> torch.device:
    if quantize is not None and device is not None and str(device).partition(":")[0] in ("cuda", "mps", "meta"):
        raise InvalidInputError(f"quantize={quantize!r} runs on the CPU only, not on {device}")
    return check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
