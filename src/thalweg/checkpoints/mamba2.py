"""The three public formats of Mamba2. A new family starts from a copy of this file.

All three share the tensor names of the mamba-ssm package up to a prefix and the plural of `embeddings`; their
configs share nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg.checkpoints import mamba_ssm
from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import Format, TensorMap
from thalweg.checkpoints.tokens import TokenIds
from thalweg.errors import CheckpointError
from thalweg.models.mamba2 import Mamba2, Mamba2Config

TENSOR_MAPS = (
    TensorMap("embeddings.weight", ("embeddings.weight", "embedding.weight")),
    TensorMap("layers.{i}.norm.weight", ("layers.{i}.norm.weight",)),
    TensorMap("layers.{i}.mixer.in_proj.weight", ("layers.{i}.mixer.in_proj.weight",)),
    TensorMap("layers.{i}.mixer.in_proj.bias", ("layers.{i}.mixer.in_proj.bias",)),
    TensorMap("layers.{i}.mixer.conv.weight", ("layers.{i}.mixer.conv1d.weight",), squeeze=1),
    TensorMap("layers.{i}.mixer.conv.bias", ("layers.{i}.mixer.conv1d.bias",)),
    TensorMap("layers.{i}.mixer.dt_bias", ("layers.{i}.mixer.dt_bias",), keep_float32=True),
    TensorMap("layers.{i}.mixer.A_log", ("layers.{i}.mixer.A_log",), keep_float32=True),
    TensorMap("layers.{i}.mixer.D", ("layers.{i}.mixer.D",), keep_float32=True),
    TensorMap("layers.{i}.mixer.norm.weight", ("layers.{i}.mixer.norm.weight",)),
    TensorMap("layers.{i}.mixer.out_proj.weight", ("layers.{i}.mixer.out_proj.weight",)),
    TensorMap("layers.{i}.mixer.out_proj.bias", ("layers.{i}.mixer.out_proj.bias",)),
    TensorMap("norm.weight", ("norm_f.weight",)),
    # The language-model head: stored or not, tied or not, an embedder has no use for it.
    TensorMap(None, ("lm_head.weight",)),
)

# What a config of transformers' Mamba2 holds whatever its `model_type` is called; Mamba1 has no heads, and the hybrids
# (bamba, zamba2, nemotron_h, …) name these keys differently.
TRANSFORMERS_KEYS = frozenset({"hidden_size", "num_hidden_layers", "state_size", "num_heads", "head_dim", "n_groups"})
MISTRAL_KEYS = frozenset({"dim", "n_layers", "n_groups"})


def read_transformers(fields: Fields) -> Mamba2Config:
    """From a config of transformers' Mamba2; missing keys take the defaults of its config class.

    Knowingly ignored, because the reference implementation ignores them too or uses them only to initialise:
    norm_before_gate, rms_norm, intermediate_size, time_step_rank, time_step_min, time_step_max, time_step_floor,
    rescale_prenorm_residual, chunk_size, tie_word_embeddings.
    """
    fields.require("hidden_act", "silu", ("silu", "swish"), "only the silu activation is implemented")
    d_model, expand = fields.integer("hidden_size", 4096), fields.factor("expand", 2)
    n_heads, head_dim = fields.integer("num_heads", 128), fields.integer("head_dim", 64)
    if n_heads * head_dim != expand * d_model:
        raise CheckpointError(
            f"{fields.source}: num_heads × head_dim = {n_heads} × {head_dim} must equal "
            f"expand × hidden_size = {expand:g} × {d_model}"
        )
    return Mamba2Config(
        vocab_size=fields.integer("vocab_size", 32768),
        d_model=d_model,
        n_layers=fields.integer("num_hidden_layers", 64),
        n_heads=n_heads,
        head_dim=head_dim,
        d_state=fields.integer("state_size", 128),
        n_groups=fields.integer("n_groups", 8),
        d_conv=fields.integer("conv_kernel", 4),
        norm_eps=fields.epsilon("layer_norm_epsilon", 1e-5),
        time_step_limit=read_time_step_limit(fields, "time_step_limit"),
        conv_bias=fields.flag("use_conv_bias", True),
        proj_bias=fields.flag("use_bias", False),
        residual_in_fp32=fields.flag("residual_in_fp32", True),
    )


def write_transformers(config: Mamba2Config) -> dict[str, Any]:
    """The config.json of transformers' `Mamba2Model`, for `save_checkpoint`."""
    written: dict[str, Any] = {
        "architectures": ["Mamba2Model"],
        "model_type": "mamba2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_heads": config.n_heads,
        "head_dim": config.head_dim,
        "state_size": config.d_state,
        "n_groups": config.n_groups,
        "conv_kernel": config.d_conv,
        "layer_norm_epsilon": config.norm_eps,
        "use_conv_bias": config.conv_bias,
        "use_bias": config.proj_bias,
        "residual_in_fp32": config.residual_in_fp32,
        "hidden_act": "silu",
        "chunk_size": 256,
        "tie_word_embeddings": False,
    }
    expand = config.n_heads * config.head_dim / config.d_model
    written["expand"] = int(expand) if expand.is_integer() else expand
    low, high = config.time_step_limit
    if (low, high) != (0.0, math.inf):
        # The usual limit is left to the default: every way to write infinity is refused by some reader of this file.
        written["time_step_limit"] = [low, {"__float__": "Infinity"} if math.isinf(high) else high]
    return written


def read_mamba_ssm(fields: Fields) -> Mamba2Config:
    """From the config.json of the mamba-ssm package (state-spaces/mamba2-*)."""
    ssm = fields.section("ssm_cfg")
    ssm.require("layer", "Mamba1", ("Mamba2",), "only Mamba1 and Mamba2 layers are implemented")
    mamba_ssm.check_stack(fields)
    ssm.require("rmsnorm", True, (True,), "only layers with a gated norm are implemented")
    ssm.require("norm_before_gate", False, (False,), "only the gate before the norm is implemented")
    ssm.require("D_has_hdim", False, (False,), "only one D for each head is implemented")
    if ssm.raw.get("d_ssm") is not None:
        raise CheckpointError(
            f"{ssm.source}: d_ssm is {ssm.raw['d_ssm']!r:.80}; layers with a partial SSM are unsupported"
        )
    return _mamba_ssm_config(
        fields,
        d_model=fields.integer("d_model"),
        n_layers=fields.integer("n_layer"),
        n_groups=ssm.integer("ngroups", 1),
        ssm=ssm,
    )


def read_mistral(fields: Fields) -> Mamba2Config:
    """From Mistral's params.json, which stands for a mamba-ssm config with default `ssm_cfg` but for the groups."""
    fields.require("rms_norm", True, (True,), "only RMSNorm is implemented, not LayerNorm")
    return _mamba_ssm_config(
        fields,
        d_model=fields.integer("dim"),
        n_layers=fields.integer("n_layers"),
        n_groups=fields.integer("n_groups"),
        ssm=Fields({}, fields.source),
    )


def read_time_step_limit(fields: Fields, key: str) -> tuple[float, float]:
    """[low, high] with infinity as a bare `Infinity`, as {"__float__": "Infinity"} or as a string; (0, ∞) if absent."""
    value = fields.raw.get(key)
    if value is None:
        return 0.0, math.inf
    if isinstance(value, str):
        raise fields.wrong(key, value, "two numbers")
    try:
        low, high = (float(_untagged(bound)) for bound in value)
    except (TypeError, ValueError, OverflowError):
        raise fields.wrong(key, value, "two numbers") from None
    if not 0.0 <= low <= high:  # also refuses NaN
        raise fields.wrong(key, value, "two numbers, 0 <= low <= high")
    return low, high


def _untagged(bound: Any) -> Any:
    return bound["__float__"] if isinstance(bound, dict) and set(bound) == {"__float__"} else bound


def _mamba_ssm_config(fields: Fields, *, d_model: int, n_layers: int, n_groups: int, ssm: Fields) -> Mamba2Config:
    head_dim, expand = ssm.integer("headdim", 64), ssm.integer("expand", 2)
    if expand * d_model % head_dim:
        raise CheckpointError(f"{fields.source}: headdim {head_dim} must divide {expand} × {d_model}")
    return Mamba2Config(
        vocab_size=mamba_ssm.padded_vocab_size(fields),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=expand * d_model // head_dim,
        head_dim=head_dim,
        d_state=ssm.integer("d_state", 128),
        n_groups=n_groups,
        d_conv=ssm.integer("d_conv", 4),
        time_step_limit=read_time_step_limit(ssm, "dt_limit"),
        conv_bias=ssm.flag("conv_bias", True),
        proj_bias=ssm.flag("bias", False),
        residual_in_fp32=fields.flag("residual_in_fp32", True),
    )


def _is_transformers(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mamba2" or config.keys() >= TRANSFORMERS_KEYS


def _is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    # Also with a layer that nobody knows, so that the error can quote it.
    return mamba_ssm.is_config(config) and not mamba_ssm.has_mamba1(config)


FORMATS = (
    Format(
        name="mamba2/transformers",
        family="mamba2",
        config_file="config.json",
        looks_like="config.json with model_type mamba2, or with " + ", ".join(sorted(TRANSFORMERS_KEYS)),
        recognises=_is_transformers,
        read_config=read_transformers,
        model_class=Mamba2,
        tensor_maps=TENSOR_MAPS,
        # Mamba2Model has no prefix, Mamba2ForCausalLM has `backbone.`, and wrappers of it add `model.`.
        prefixes=("", "backbone.", "model.", "model.backbone."),
        write_config=write_transformers,
        in_transformers=True,
    ),
    Format(
        name="mamba2/mamba-ssm",
        family="mamba2",
        config_file="config.json",
        looks_like="config.json with " + ", ".join(sorted(mamba_ssm.KEYS)) + " and layer Mamba2",
        recognises=_is_mamba_ssm,
        read_config=read_mamba_ssm,
        model_class=Mamba2,
        tensor_maps=TENSOR_MAPS,
        prefixes=mamba_ssm.PREFIXES,
        token_ids=mamba_ssm.TOKEN_IDS,
    ),
    Format(
        name="mamba2/mistral",
        family="mamba2",
        config_file="params.json",
        looks_like="params.json with " + ", ".join(sorted(MISTRAL_KEYS)),
        recognises=lambda config: config.keys() >= MISTRAL_KEYS,
        read_config=read_mistral,
        model_class=Mamba2,
        tensor_maps=TENSOR_MAPS,
        prefixes=("model.backbone.", "model."),
        # Mistral's tokenizers: <unk> 0, <s> 1, </s> 2.
        token_ids=TokenIds(eos=2, bos=1),
    ),
)
