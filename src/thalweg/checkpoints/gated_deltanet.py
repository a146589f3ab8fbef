"""The format of Gated DeltaNet: flash-linear-attention's `GatedDeltaNetForCausalLM`, of any version.

Files from before February 2025 differ in two things: the two sides of the MLP lie in one tensor, and every layer has
a parameter `D` that never was used.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import HYBRID_HINT, Format, TensorMap
from thalweg.checkpoints.tokens import TokenIds
from thalweg.errors import CheckpointError
from thalweg.models.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig

TENSOR_MAPS = (
    TensorMap("embeddings.weight", ("embeddings.weight",)),
    TensorMap("layers.{i}.attn_norm.weight", ("layers.{i}.attn_norm.weight",)),
    *(
        tensor_map
        for name in "qkv"
        for tensor_map in (
            TensorMap(f"layers.{{i}}.attn.{name}.proj.weight", (f"layers.{{i}}.attn.{name}_proj.weight",)),
            TensorMap(f"layers.{{i}}.attn.{name}.conv.weight", (f"layers.{{i}}.attn.{name}_conv1d.weight",), squeeze=1),
            TensorMap(f"layers.{{i}}.attn.{name}.conv.bias", (f"layers.{{i}}.attn.{name}_conv1d.bias",)),
        )
    ),
    TensorMap("layers.{i}.attn.a_proj.weight", ("layers.{i}.attn.a_proj.weight",)),
    TensorMap("layers.{i}.attn.b_proj.weight", ("layers.{i}.attn.b_proj.weight",)),
    TensorMap("layers.{i}.attn.g_proj.weight", ("layers.{i}.attn.g_proj.weight",)),
    TensorMap("layers.{i}.attn.o_proj.weight", ("layers.{i}.attn.o_proj.weight",)),
    TensorMap("layers.{i}.attn.o_norm.weight", ("layers.{i}.attn.o_norm.weight",)),
    TensorMap("layers.{i}.attn.dt_bias", ("layers.{i}.attn.dt_bias",), keep_float32=True),
    TensorMap("layers.{i}.attn.A_log", ("layers.{i}.attn.A_log",), keep_float32=True),
    TensorMap(None, ("layers.{i}.attn.D",)),
    TensorMap("layers.{i}.mlp_norm.weight", ("layers.{i}.mlp_norm.weight",)),
    TensorMap("layers.{i}.mlp.gate_proj.weight", ("layers.{i}.mlp.gate_proj.weight",)),
    TensorMap("layers.{i}.mlp.up_proj.weight", ("layers.{i}.mlp.up_proj.weight",)),
    # The old tensor of both: the shape tells which row it is.
    TensorMap("layers.{i}.mlp.gate_proj.weight", ("layers.{i}.mlp.gate_proj.weight",), part=(0, 2)),
    TensorMap("layers.{i}.mlp.up_proj.weight", ("layers.{i}.mlp.gate_proj.weight",), part=(1, 2)),
    TensorMap("layers.{i}.mlp.down_proj.weight", ("layers.{i}.mlp.down_proj.weight",)),
    TensorMap("norm.weight", ("norm.weight",)),
    # The language-model head: stored or not, tied or not, an embedder has no use for it.
    TensorMap(None, ("lm_head.weight",)),
)


def read_fla(fields: Fields) -> GatedDeltaNetConfig:
    """From a config of fla's GatedDeltaNet; missing keys take the defaults of its config class.

    Knowingly ignored, because they choose how something is computed and not what, or only initialise: attn_mode,
    fuse_norm, fuse_swiglu, fuse_cross_entropy, fuse_linear_cross_entropy, use_l2warp, use_cache, initializer_range,
    max_position_embeddings. Because they concern the head: tie_word_embeddings.
    """
    if fields.raw.get("attn"):
        raise CheckpointError(f"{fields.source}: attn names attention layers; {HYBRID_HINT}")
    if fields.raw.get("attnres_block_size") is not None:
        raise CheckpointError(
            f"{fields.source}: attnres_block_size is {fields.raw['attnres_block_size']!r:.80}, which is not supported: "
            "residuals that attend to earlier layers are not implemented"
        )
    fields.require("hidden_act", "swish", ("swish", "silu"), "only the swish activation is implemented")
    fields.require("norm_first", False, (False,), "only norms before the mixer and the MLP are implemented")
    d_model, head_dim = fields.integer("hidden_size", 2048), fields.integer("head_dim", 256)
    n_heads = fields.integer("num_heads", 6)
    return GatedDeltaNetConfig(
        vocab_size=fields.integer("vocab_size", 32000),
        d_model=d_model,
        n_layers=fields.integer("num_hidden_layers", 21),
        n_heads=n_heads,
        head_dim=head_dim,
        n_value_heads=fields.integer("num_v_heads", n_heads),
        value_head_dim=_value_head_dim(fields, head_dim),
        d_mlp=_d_mlp(fields, d_model),
        d_conv=fields.integer("conv_size", 4) if fields.flag("use_short_conv", True) else 0,
        conv_bias=fields.flag("conv_bias", False),
        output_gate=_output_gate(fields),
        allow_neg_eigval=fields.flag("allow_neg_eigval", False),
        norm_eps=fields.epsilon("norm_eps", 1e-6),
    )


def write_fla(config: GatedDeltaNetConfig) -> dict[str, Any]:
    """The config.json of fla's `GatedDeltaNetModel`, for `save_checkpoint`."""
    return {
        "architectures": ["GatedDeltaNetModel"],
        "model_type": "gated_deltanet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_heads": config.n_heads,
        "head_dim": config.head_dim,
        "num_v_heads": config.n_value_heads,
        "expand_v": _expand_v(config),
        "intermediate_size": config.d_mlp,
        "hidden_act": "swish",
        "use_short_conv": config.d_conv > 0,
        "conv_size": config.d_conv or 4,
        "conv_bias": config.conv_bias,
        "use_gate": config.output_gate is not None,
        "output_gate_activation": "sigmoid" if config.output_gate == "sigmoid" else "swish",
        "allow_neg_eigval": config.allow_neg_eigval,
        "norm_eps": config.norm_eps,
        "attn": None,
        "tie_word_embeddings": False,
    }


def _value_head_dim(fields: Fields, head_dim: int) -> int:
    expand_v = fields.factor("expand_v", 2)
    width = round(head_dim * expand_v)
    if not math.isclose(head_dim * expand_v, width, rel_tol=1e-5):
        raise CheckpointError(f"{fields.source}: head_dim × expand_v = {head_dim} × {expand_v:g} must be an integer")
    return width


def _expand_v(config: GatedDeltaNetConfig) -> float:
    """The factor whose product with head_dim is value_head_dim once it is rounded down, as fla does."""
    factor = config.value_head_dim / config.head_dim
    return factor if int(config.head_dim * factor) == config.value_head_dim else math.nextafter(factor, math.inf)


def _d_mlp(fields: Fields, d_model: int) -> int:
    if fields.raw.get("intermediate_size") is not None:
        return fields.integer("intermediate_size")
    # Two thirds of hidden_ratio × hidden_size, cut to an integer, then up to a multiple of 256.
    return math.ceil(int(d_model * fields.factor("hidden_ratio", 4) * 2 / 3) / 256) * 256


def _output_gate(fields: Fields) -> Literal["silu", "sigmoid"] | None:
    if not fields.flag("use_gate", True):
        return None
    known = ("swish", "silu", "sigmoid")
    fields.require("output_gate_activation", "swish", known, f"only {', '.join(known)} are implemented")
    return "sigmoid" if fields.raw.get("output_gate_activation") == "sigmoid" else "silu"


FORMATS = (
    Format(
        name="gated_deltanet/fla",
        family="gated_deltanet",
        config_file="config.json",
        looks_like="config.json with model_type gated_deltanet",
        recognises=lambda config: config.get("model_type") == "gated_deltanet",
        read_config=read_fla,
        model_class=GatedDeltaNet,
        tensor_maps=TENSOR_MAPS,
        # GatedDeltaNetModel has no prefix, GatedDeltaNetForCausalLM has `model.`.
        prefixes=("", "model."),
        token_ids=TokenIds(eos=2, bos=1),
        write_config=write_fla,
    ),
)
