"""Tiny random xLSTM checkpoints in transformers' format, made from a transformers model.

The writer returns the oracle: a float32 `xLSTMForCausalLM` whose weights are exactly those in the file (rounded to
the file's dtype), so `oracle.backbone(ids)` is what a loaded model has to reproduce.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import xLSTMConfig, xLSTMForCausalLM

from tests.checkpoints.formats import Checkpoints, write_weights

# What the config.json of NX-AI/xLSTM-7b holds besides its shape.
PUBLISHED_KEYS: dict[str, Any] = {
    "add_embedding_dropout": False,
    "add_forward_backend_padding": False,
    "add_out_norm": True,
    "add_post_blocks_norm": True,
    "add_post_norm": False,
    "add_qk_norm": False,
    "autocast_kernel_dtype": "bfloat16",
    "bos_token_id": 0,
    "cell_norm_eps": 1e-06,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk",
    "eos_token_id": 2,
    "force_bos_token_insert": True,
    "head_dim": 512,
    "igate_bias_init_range": -10.0,
    "inference_state_dtype": "float32",
    "mlstm_round_up_to_multiple_of": 64,
    "mode": "inference",
    "norm_reduction_force_float32": True,
    "output_logit_soft_cap": 30.0,
    "pad_token_id": 1,
    "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton",
    "torch_dtype": "float32",
    "use_cache": True,
    "weight_mode": "single",
}


def tiny_xlstm_config(**changes: Any) -> xLSTMConfig:
    """Two blocks of two heads; `changes` are keys of transformers' config."""
    keys: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "chunk_size": 16,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    return xLSTMConfig(**{**keys, **changes})


def make_xlstm_oracle(config: xLSTMConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> xLSTMForCausalLM:
    """A random model, every parameter away from its special initial value (0, 1, -10), its gates half open."""
    torch.manual_seed(seed)
    model = xLSTMForCausalLM(config)
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "embeddings" in name or "gate_preact.bias" in name else 0.2
            shift = 1.0 if "norm" in name and name.endswith("weight") else 3.0 if "fgate_preact.bias" in name else 0.0
            parameter.copy_((shift + scale * torch.randn_like(parameter)).to(dtype).float())
    return model


def write_xlstm(
    folder: Path,
    config: xLSTMConfig,
    *,
    prefix: bool = True,
    sharded: bool = False,
    bin: bool = False,
    dtype: torch.dtype = torch.float32,
    published: bool = False,
    extra: dict[str, Any] | None = None,
) -> xLSTMForCausalLM:
    """config.json and weights, as `xLSTMForCausalLM` or, without `prefix`, as a bare `xLSTMModel`.

    `published` writes the keys of xLSTM-7b's own config.json, which are older than transformers' class. `extra` changes
    keys of config.json (None removes one).
    """
    oracle = make_xlstm_oracle(config, dtype)
    # clone: a tied head shares its storage with the embeddings, which safetensors refuses.
    tensors = {name: tensor.to(dtype).clone() for name, tensor in oracle.state_dict().items()}
    if not prefix:
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    if not prefix or config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    keys: dict[str, Any] = json.loads(config.to_json_string())
    if published:
        for name in ("hidden_size", "num_hidden_layers", "max_inference_chunksize"):
            del keys[name]
        keys = {**keys, **PUBLISHED_KEYS}
    keys["architectures"] = ["xLSTMForCausalLM" if prefix else "xLSTMModel"]
    keys = {name: value for name, value in {**keys, **(extra or {})}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys, indent=2), encoding="utf-8")
    write_weights(folder, tensors, "pytorch_model.bin" if bin else "model.safetensors", sharded=sharded)
    return oracle


CHECKPOINTS: Checkpoints = {
    "xlstm": (
        "xlstm/transformers",
        lambda folder: write_xlstm(folder, tiny_xlstm_config(bos_token_id=1), published=True),
    ),
}
