"""Tiny Gated DeltaNet checkpoints in the format of flash-linear-attention, as its versions wrote them.

fla needs a GPU's compiler, so it is no oracle that a test could run. Config, names and shapes are those that
`GatedDeltaNetForCausalLM.save_pretrained` of fla 0.6.0 wrote, and the weights are sines, which come out the same
everywhere: `FLA_VECTORS` are vectors that fla itself made of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints.formats import Checkpoints, write_weights

IDS = torch.arange(60) * 7 % 50

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_v_heads": 4, "expand_v": 0.75, "allow_neg_eigval": True},
    "sigmoid": {"output_gate_activation": "sigmoid"},
    "no gate": {"use_gate": False, "expand_v": 0.75},
    "no convolution": {"use_short_conv": False},
}

# The first numbers of the vector of the last of `IDS`, from fla 0.6.0 on the CPU in triton's interpreter, float32. The
# distance of all 60 vectors to float64 is 4e-6 to 2.4e-5 of the largest value there, and 5e-6 to 1e-5 here: sines
# are weights of a kind that magnifies the rounding.
FLA_VECTORS: dict[str, list[float]] = {
    "plain": [-1.15033, 0.32216, 0.58284, -1.87068, 0.81857, 0.21921],
    "grouped": [-1.27084, 1.36151, -0.80524, 1.46765, -1.10126, 0.84464],
    "sigmoid": [-0.40351, 0.10144, 0.59523, -1.63284, 0.93394, 0.20037],
    "no gate": [0.92824, -0.42616, -0.67376, -1.60621, -1.01498, -0.02442],
    "no convolution": [1.03008, -1.5984, 0.20314, -1.68464, -0.08515, 0.80381],
}


def tiny_fla_config(**changes: Any) -> dict[str, Any]:
    """config.json of two layers as fla 0.6.0 writes it; `changes` are its keys."""
    return {
        "allow_neg_eigval": False,
        "architectures": ["GatedDeltaNetForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "attnres_block_size": None,
        "bos_token_id": 1,
        "conv_size": 4,
        "dtype": "float32",
        "eos_token_id": 2,
        "expand_v": 1,
        "fuse_cross_entropy": True,
        "fuse_linear_cross_entropy": False,
        "fuse_norm": True,
        "fuse_swiglu": True,
        "head_dim": 16,
        "hidden_act": "swish",
        "hidden_ratio": 4,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "model_type": "gated_deltanet",
        "norm_eps": 1e-05,
        "num_heads": 2,
        "num_hidden_layers": 2,
        "num_v_heads": None,
        "output_gate_activation": "swish",
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "use_gate": True,
        "use_l2warp": False,
        "use_short_conv": True,
        "vocab_size": 50,
        **changes,
    }


NEWER_KEYS = (
    "allow_neg_eigval",
    "attnres_block_size",
    "fuse_linear_cross_entropy",
    "fuse_norm",
    "fuse_swiglu",
    "num_v_heads",
    "output_gate_activation",
    "use_l2warp",
)
"""What the config.json of fla's first version does not hold."""


def write_fla(
    folder: Path,
    config: dict[str, Any],
    *,
    first_version: bool = False,
    prefix: bool = True,
    sharded: bool = False,
    bin: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A `GatedDeltaNetForCausalLM`, or without `prefix` a bare `GatedDeltaNetModel`; returns its tensors, all separate.

    `first_version` is the format from December 2024 to February 2025: both sides of the MLP in `gate_proj`, an unused
    `D` a layer, fewer keys in config.json and `norm_first`.
    """
    tensors = {name: sines(name, shape).to(dtype) for name, shape in _shapes(config).items()}
    stored = {name if prefix else name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if not prefix or config["tie_word_embeddings"]:
        del stored["lm_head.weight"]
    if first_version:
        config = {key: value for key, value in config.items() if key not in NEWER_KEYS} | {"norm_first": False}
        for name in [name for name in stored if name.endswith("up_proj.weight")]:
            gate = name.replace("up_proj", "gate_proj")
            stored[gate] = torch.cat([stored[gate], stored.pop(name)])
        stored |= {name.replace("A_log", "D"): torch.ones_like(t) for name, t in stored.items() if "A_log" in name}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_weights(folder, stored, "pytorch_model.bin" if bin else "model.safetensors", sharded=sharded)
    return tensors


def sines(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that follow from the parameter's name alone; norms about 1."""
    seed = sum(name.encode())
    n = torch.Size(shape).numel()
    x = torch.sin(torch.arange(1, n + 1, dtype=torch.float64) * (1.7 + seed % 97 / 97) + seed).view(shape)
    scale = 1.0 if "embeddings" in name or len(shape) == 1 else 1.5 * shape[-1] ** -0.5
    return (1 + 0.3 * x if "norm" in name else scale * x).float()


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    c = config
    width, mlp = c["hidden_size"], c["intermediate_size"]
    heads = c["num_v_heads"] or c["num_heads"]
    value_head = int(c["head_dim"] * c["expand_v"])
    key_dim, value_dim = c["num_heads"] * c["head_dim"], heads * value_head
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,),
        "attn.A_log": (heads,),
        "attn.dt_bias": (heads,),
        "attn.q_proj.weight": (key_dim, width),
        "attn.k_proj.weight": (key_dim, width),
        "attn.v_proj.weight": (value_dim, width),
        "attn.a_proj.weight": (heads, width),
        "attn.b_proj.weight": (heads, width),
        "attn.o_norm.weight": (value_head,),
        "attn.o_proj.weight": (width, value_dim),
        "mlp_norm.weight": (width,),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
    }
    if c["use_short_conv"]:
        layer |= {f"attn.{n}_conv1d.weight": (key_dim, 1, c["conv_size"]) for n in "qk"}
        layer["attn.v_conv1d.weight"] = (value_dim, 1, c["conv_size"])
    if c["use_gate"]:
        layer["attn.g_proj.weight"] = (value_dim, width)
    return {
        "model.embeddings.weight": (c["vocab_size"], width),
        **{f"model.layers.{i}.{name}": shape for i in range(c["num_hidden_layers"]) for name, shape in layer.items()},
        "model.norm.weight": (width,),
        "lm_head.weight": (c["vocab_size"], width),
    }


CHECKPOINTS: Checkpoints = {
    "gated_deltanet": ("gated_deltanet/fla", lambda folder: write_fla(folder, tiny_fla_config())),
    "gated_deltanet, first version": (
        "gated_deltanet/fla",
        lambda folder: write_fla(folder, tiny_fla_config(), first_version=True),
    ),
}
