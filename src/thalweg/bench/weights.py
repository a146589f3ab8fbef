"""Models of a stated shape with random weights, made where they are used and in the dtype they are used in.

A model in float32 that is converted afterwards would leave its peak in the figures of memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from thalweg.bench.shapes import Shape
from thalweg.checkpoints.formats import keep_float32_
from thalweg.errors import MissingExtraError
from thalweg.families import find_family
from thalweg.models.quantized import Quantization, quantize_


def recurrent_model(
    shape: Shape,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    layers: int | None = None,
    vocabulary: int | None = None,
    quantize: Quantization | None = None,
) -> Any:
    """A model of thalweg, ready to run; the same weights every time, in the dtypes that `load_checkpoint` gives."""
    torch.manual_seed(0)
    with _made(dtype, device):
        model = find_family(shape.family).build(shape.resized(layers, vocabulary))
    keep_float32_(model)
    if quantize is not None:
        quantize_(model, quantize)
    return model.eval().requires_grad_(False)


def transformer_model(
    shape: Shape,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    attention: str,
    window: int | None,
    length: int,
    layers: int | None = None,
    vocabulary: int | None = None,
) -> Any:
    """A transformer of the library transformers, without a language-model head.

    Args:
        attention: "sdpa", "flash_attention_2" or "eager".
        window: tokens that a Mistral layer looks back, None for all of them; ModernBERT has its own pattern.
        length: tokens of the longest text.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformer baselines need transformers: pip install 'thalweg[bench]'")
    from transformers import AutoModel, MistralConfig, ModernBertConfig

    fields: dict[str, Any] = {**shape.resized(layers, vocabulary), "max_position_embeddings": length}
    config: Any
    if shape.family == "mistral":
        config = MistralConfig(**fields, sliding_window=window)
    else:
        special = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        config = ModernBertConfig(**fields | dict.fromkeys(special, 0))  # inside any vocabulary
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def best_attention(device: str, dtype: str) -> str:
    """FlashAttention where it is installed and takes the dtype, else PyTorch's own fused attention."""
    flash = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash and device.startswith("cuda") and dtype != "float32" else "sdpa"


@contextmanager
def _made(dtype: torch.dtype, device: torch.device | str) -> Iterator[None]:
    """New tensors get this dtype and lie on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
