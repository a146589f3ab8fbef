"""The format of xLSTM-7b: transformers' `xLSTMModel`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import Format, TensorMap
from thalweg.errors import CheckpointError
from thalweg.models.xlstm import XLSTM, XLSTMConfig


def _linear(name: str, stored: str, *, keep_float32: bool = False) -> tuple[TensorMap, TensorMap]:
    """The weight and the bias of one linear map or norm of a block."""
    return (
        TensorMap(f"layers.{{i}}.{name}.weight", (f"blocks.{{i}}.{stored}.weight",), keep_float32=keep_float32),
        TensorMap(f"layers.{{i}}.{name}.bias", (f"blocks.{{i}}.{stored}.bias",), keep_float32=keep_float32),
    )


TENSOR_MAPS = (
    TensorMap("embeddings.weight", ("embeddings.weight",)),
    *_linear("norm_mlstm", "norm_mlstm"),
    *_linear("mlstm.q", "mlstm_layer.q"),
    *_linear("mlstm.k", "mlstm_layer.k"),
    *_linear("mlstm.v", "mlstm_layer.v"),
    *_linear("mlstm.o", "mlstm_layer.ogate_preact"),
    *_linear("mlstm.i", "mlstm_layer.igate_preact", keep_float32=True),
    *_linear("mlstm.f", "mlstm_layer.fgate_preact", keep_float32=True),
    *_linear("mlstm.norm", "mlstm_layer.multihead_norm"),
    *_linear("mlstm.out_proj", "mlstm_layer.out_proj"),
    *_linear("norm_ffn", "norm_ffn"),
    *_linear("ffn.gate", "ffn.proj_up_gate"),
    *_linear("ffn.up", "ffn.proj_up"),
    *_linear("ffn.down", "ffn.proj_down"),
    TensorMap("norm.weight", ("out_norm.weight",)),
    # The language-model head: stored or not, tied or not, an embedder has no use for it.
    TensorMap(None, ("lm_head.weight",)),
)

# What a config of this architecture holds whatever its `model_type` is called.
TRANSFORMERS_KEYS = frozenset({"num_heads", "qk_dim_factor", "v_dim_factor", "ffn_proj_factor", "gate_soft_cap"})


def read_transformers(fields: Fields) -> XLSTMConfig:
    """From a config of transformers' xLSTM; missing keys take the defaults of its config class.

    Older files (xLSTM-7b's own among them) say embedding_dim and num_blocks only. transformers would then take the
    hidden_size of 4096 for any width; here the one stated is taken. Of num_blocks and num_hidden_layers transformers
    builds num_blocks, and so does this.

    Knowingly ignored, because they choose how something is computed and not what: mode, chunk_size, chunkwise_kernel,
    sequence_kernel, step_kernel, max_inference_chunksize, autocast_kernel_dtype, inference_state_dtype,
    norm_reduction_force_float32 (states and norms are float32 here, whatever the config says), use_cache,
    return_last_states. Because they concern the head: output_logit_soft_cap, tie_word_embeddings. Because transformers
    does not look at them either: add_out_norm and add_post_blocks_norm (there always is an `out_norm`),
    add_embedding_dropout, add_forward_backend_padding, cell_norm_eps, head_dim, igate_bias_init_range,
    mlstm_round_up_to_multiple_of (widths of q, k and v are rounded down to an integer, and to nothing else).
    """
    fields.require("weight_mode", "single", ("single",), "no published checkpoint holds its projections fused")
    fields.require("add_qk_norm", False, (False,), "norms of queries and keys are not implemented")
    fields.require("add_post_norm", False, (False,), "norms after a layer are not implemented")
    d_model = fields.integer("embedding_dim", fields.integer("hidden_size", 4096))
    if fields.integer("hidden_size", d_model) != d_model:
        raise CheckpointError(
            f"{fields.source}: hidden_size is {fields.raw['hidden_size']} but embedding_dim is {d_model}: they must be "
            "equal; remove the wrong one"
        )
    multiple = fields.integer("ffn_round_up_to_multiple_of", 64)
    # In floating point, as transformers does it.
    d_ffn = int((d_model * fields.factor("ffn_proj_factor", 2.667) + multiple - 1) // multiple * multiple)
    return XLSTMConfig(
        vocab_size=fields.integer("vocab_size", 50304),
        d_model=d_model,
        n_layers=fields.integer("num_blocks", fields.integer("num_hidden_layers", 32)),
        n_heads=fields.integer("num_heads", 8),
        d_qk=int(d_model * fields.factor("qk_dim_factor", 0.5)),
        d_v=int(d_model * fields.factor("v_dim_factor", 1.0)),
        d_ffn=d_ffn,
        gate_soft_cap=fields.number("gate_soft_cap", 15.0, minimum=1e-3, maximum=1e6),
        norm_eps=fields.epsilon("norm_eps", 1e-6),
        eps=fields.epsilon("eps", 1e-6),
        bias=fields.flag("use_bias", False),
        force_bos_token_insert=fields.flag("force_bos_token_insert", False),
    )


def write_transformers(config: XLSTMConfig) -> dict[str, Any]:
    """The config.json of transformers' `xLSTMModel`, for `save_checkpoint`."""
    return {
        "architectures": ["xLSTMModel"],
        "model_type": "xlstm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "embedding_dim": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_blocks": config.n_layers,
        "num_heads": config.n_heads,
        "qk_dim_factor": _factor(config.d_qk, config.d_model),
        "v_dim_factor": _factor(config.d_v, config.d_model),
        "ffn_proj_factor": _factor(config.d_ffn, config.d_model),
        "ffn_round_up_to_multiple_of": 1,
        "gate_soft_cap": config.gate_soft_cap,
        "norm_eps": config.norm_eps,
        "eps": config.eps,
        "use_bias": config.bias,
        "weight_mode": "single",
        "add_out_norm": True,
        "force_bos_token_insert": config.force_bos_token_insert,
        "tie_word_embeddings": False,
    }


def _factor(width: int, d_model: int) -> float:
    """The factor whose product with d_model is `width` once it is rounded down."""
    factor = width / d_model
    return factor if int(d_model * factor) == width else math.nextafter(factor, math.inf)


def _is_transformers(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "xlstm" or config.keys() >= TRANSFORMERS_KEYS


FORMATS = (
    Format(
        name="xlstm/transformers",
        family="xlstm",
        config_file="config.json",
        looks_like="config.json with model_type xlstm, or with " + ", ".join(sorted(TRANSFORMERS_KEYS)),
        recognises=_is_transformers,
        read_config=read_transformers,
        model_class=XLSTM,
        tensor_maps=TENSOR_MAPS,
        # xLSTMModel has no prefix, xLSTMForCausalLM has `backbone.`.
        prefixes=("", "backbone."),
        write_config=write_transformers,
        in_transformers=True,
    ),
)
