"""The two public formats of Mamba1, the first also of Falcon-Mamba."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg.checkpoints import mamba_ssm
from thalweg.checkpoints.fields import Fields, listing
from thalweg.checkpoints.format import Format, TensorMap
from thalweg.errors import CheckpointError
from thalweg.models.mamba import ACTIVATIONS, Mamba, MambaConfig

TENSOR_MAPS = (
    TensorMap("embeddings.weight", ("embeddings.weight", "embedding.weight")),
    TensorMap("layers.{i}.norm.weight", ("layers.{i}.norm.weight",)),
    TensorMap("layers.{i}.mixer.in_proj.weight", ("layers.{i}.mixer.in_proj.weight",)),
    TensorMap("layers.{i}.mixer.in_proj.bias", ("layers.{i}.mixer.in_proj.bias",)),
    TensorMap("layers.{i}.mixer.conv.weight", ("layers.{i}.mixer.conv1d.weight",), squeeze=1),
    TensorMap("layers.{i}.mixer.conv.bias", ("layers.{i}.mixer.conv1d.bias",)),
    TensorMap("layers.{i}.mixer.x_proj.weight", ("layers.{i}.mixer.x_proj.weight",)),
    TensorMap("layers.{i}.mixer.dt_proj.weight", ("layers.{i}.mixer.dt_proj.weight",)),
    TensorMap("layers.{i}.mixer.dt_bias", ("layers.{i}.mixer.dt_proj.bias",), keep_float32=True),
    TensorMap("layers.{i}.mixer.A_log", ("layers.{i}.mixer.A_log",), keep_float32=True),
    TensorMap("layers.{i}.mixer.D", ("layers.{i}.mixer.D",), keep_float32=True),
    TensorMap("layers.{i}.mixer.out_proj.weight", ("layers.{i}.mixer.out_proj.weight",)),
    TensorMap("layers.{i}.mixer.out_proj.bias", ("layers.{i}.mixer.out_proj.bias",)),
    TensorMap("norm.weight", ("norm_f.weight",)),
    # The language-model head: stored or not, tied or not, an embedder has no use for it.
    TensorMap(None, ("lm_head.weight",)),
)

FALCON = "falcon_mamba"
MODEL_TYPES = ("mamba", FALCON)
# What mamba-ssm's Mamba1 layer takes besides what changes only its initial values.
SSM_KEYS = frozenset({"layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias"})
INITIAL_KEYS = frozenset({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"})


def read_transformers(fields: Fields) -> MambaConfig:
    """From a config of transformers' Mamba or FalconMamba; missing keys take the defaults of their config classes.

    Knowingly ignored, because the reference implementation ignores them too or uses them only to initialise:
    initializer_range, time_step_scale, time_step_min, time_step_max, time_step_init_scheme, time_step_floor,
    rescale_prenorm_residual, use_mambapy, use_associative_scan, tie_word_embeddings.
    """
    activation = fields.raw.get("hidden_act") or "silu"
    allowed = (*ACTIVATIONS, "swish")
    fields.require("hidden_act", "silu", allowed, f"implemented are {', '.join(allowed)}")
    d_model = fields.integer("hidden_size", 768)
    return MambaConfig(
        vocab_size=fields.integer("vocab_size", 50280),
        d_model=d_model,
        n_layers=fields.integer("num_hidden_layers", 32),
        # falcon-mamba-7b says expand 16 and means 2: the width that is written out is the one that holds.
        d_inner=fields.integer("intermediate_size", fields.integer("expand", 2) * d_model),
        dt_rank=_dt_rank(fields, "time_step_rank", d_model),
        d_state=fields.integer("state_size", 16),
        d_conv=fields.integer("conv_kernel", 4),
        norm_eps=fields.epsilon("layer_norm_epsilon", 1e-5),
        mixer_norm_eps=fields.epsilon("mixer_rms_eps", 1e-6) if fields.raw["model_type"] == FALCON else None,
        activation="silu" if activation == "swish" else activation,
        conv_bias=fields.flag("use_conv_bias", True),
        proj_bias=fields.flag("use_bias", False),
        residual_in_fp32=fields.flag("residual_in_fp32", True),
    )


def write_transformers(config: MambaConfig) -> dict[str, Any]:
    """The config.json of transformers' `MambaModel` or `FalconMambaModel`, for `save_checkpoint`."""
    falcon = config.mixer_norm_eps is not None
    written: dict[str, Any] = {
        "architectures": ["FalconMambaModel" if falcon else "MambaModel"],
        "model_type": FALCON if falcon else "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "intermediate_size": config.d_inner,
        "expand": max(config.d_inner // config.d_model, 1),
        "time_step_rank": config.dt_rank,
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_act": config.activation,
        "use_conv_bias": config.conv_bias,
        "use_bias": config.proj_bias,
        "residual_in_fp32": config.residual_in_fp32,
        "tie_word_embeddings": False,
    }
    return {**written, "mixer_rms_eps": config.mixer_norm_eps} if falcon else written


def read_mamba_ssm(fields: Fields) -> MambaConfig:
    """From the config.json of the mamba-ssm package (state-spaces/mamba-*)."""
    mamba_ssm.check_stack(fields)
    ssm = fields.section("ssm_cfg")
    unknown = ssm.raw.keys() - SSM_KEYS - INITIAL_KEYS
    if unknown:
        raise CheckpointError(f"{ssm.source}: unknown settings of a Mamba1 layer: {listing(unknown)}")
    d_model = fields.integer("d_model")
    return MambaConfig(
        vocab_size=mamba_ssm.padded_vocab_size(fields),
        d_model=d_model,
        n_layers=fields.integer("n_layer"),
        d_inner=ssm.integer("expand", 2) * d_model,
        dt_rank=_dt_rank(ssm, "dt_rank", d_model),
        d_state=ssm.integer("d_state", 16),
        d_conv=ssm.integer("d_conv", 4),
        conv_bias=ssm.flag("conv_bias", True),
        proj_bias=ssm.flag("bias", False),
        residual_in_fp32=fields.flag("residual_in_fp32", True),
    )


def _dt_rank(fields: Fields, key: str, d_model: int) -> int:
    automatic = math.ceil(d_model / 16)
    return automatic if fields.raw.get(key) == "auto" else fields.integer(key, automatic)


def _is_transformers(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in MODEL_TYPES and not mamba_ssm.is_config(config)


def _is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    return mamba_ssm.is_config(config) and mamba_ssm.has_mamba1(config)


FORMATS = (
    Format(
        name="mamba/transformers",
        family="mamba",
        config_file="config.json",
        looks_like="config.json with model_type " + " or ".join(MODEL_TYPES),
        recognises=_is_transformers,
        read_config=read_transformers,
        model_class=Mamba,
        tensor_maps=TENSOR_MAPS,
        # MambaModel has no prefix, MambaForCausalLM has `backbone.`, and wrappers of it add `model.`.
        prefixes=("", "backbone.", "model.", "model.backbone."),
        write_config=write_transformers,
        in_transformers=True,
    ),
    Format(
        name="mamba/mamba-ssm",
        family="mamba",
        config_file="config.json",
        looks_like="config.json with " + ", ".join(sorted(mamba_ssm.KEYS)) + " and no layer but Mamba1",
        recognises=_is_mamba_ssm,
        read_config=read_mamba_ssm,
        model_class=Mamba,
        tensor_maps=TENSOR_MAPS,
        prefixes=mamba_ssm.PREFIXES,
        token_ids=mamba_ssm.TOKEN_IDS,
    ),
)
