"""Tiny random Mamba1 and Falcon-Mamba checkpoints in every public format, each made from one transformers model.

Every writer returns the oracle: a float32 `MambaForCausalLM` or `FalconMambaForCausalLM` whose weights are exactly
those in the file (rounded to the file's dtype), so `oracle.backbone(ids)` is what a loaded model has to reproduce.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

from tests.checkpoints.formats import Checkpoints, write_weights

Oracle = MambaForCausalLM | FalconMambaForCausalLM

KEYS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def mamba_config(**changes: Any) -> MambaConfig:
    """Two layers of 64 channels; `changes` are keys of transformers' config."""
    return MambaConfig(**{**KEYS, **changes})


def falcon_config(**changes: Any) -> FalconMambaConfig:
    """As falcon-mamba-7b is published: `expand` is wrong and `intermediate_size` holds."""
    return FalconMambaConfig(**{**KEYS, "expand": 16, "intermediate_size": 64, **changes})


def make_oracle(config: MambaConfig | FalconMambaConfig, dtype: torch.dtype = torch.float32) -> Oracle:
    """A random model, every parameter away from its special initial value (0, 1, log k)."""
    torch.manual_seed(0)
    model: Oracle = (
        FalconMambaForCausalLM(config) if isinstance(config, FalconMambaConfig) else MambaForCausalLM(config)
    )
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_proj.bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                scale, shift = 1.0 if "embeddings" in name else 0.2, 1.0 if "norm" in name else 0.0
                parameter.copy_(shift + scale * torch.randn_like(parameter))
            parameter.copy_(parameter.to(dtype).float())
    return model


def write_transformers(
    folder: Path,
    config: MambaConfig | FalconMambaConfig,
    *,
    prefix: bool = True,
    sharded: bool = False,
    bin: bool = False,
    dtype: torch.dtype = torch.float32,
    extra: dict[str, Any] | None = None,
) -> Oracle:
    """transformers' format; without `prefix` it is a bare `MambaModel`. `extra` changes keys (None removes one)."""
    oracle = make_oracle(config, dtype)
    tensors = _stored(oracle, dtype)
    if not prefix:
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    if not prefix or config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    keys = json.loads(config.to_json_string(use_diff=False))
    class_name = type(oracle).__name__
    keys["architectures"] = [class_name if prefix else class_name.replace("ForCausalLM", "Model")]
    _write_config(folder, {**keys, **(extra or {})})
    write_weights(folder, tensors, "pytorch_model.bin" if bin else "model.safetensors", sharded=sharded)
    return oracle


def write_mamba_ssm(
    folder: Path,
    config: MambaConfig,
    *,
    dtype: torch.dtype = torch.float32,
    extra: dict[str, Any] | None = None,
    ssm_extra: dict[str, Any] | None = None,
) -> Oracle:
    """mamba-ssm's format (state-spaces/mamba-*); `vocab_size` is written three short of the padded one.

    The published configs hold exactly these keys; what is not at its default goes into `ssm_cfg`.
    """
    oracle = make_oracle(config, dtype)
    unusual: tuple[tuple[str, Any, Any], ...] = (
        ("d_state", config.state_size, 16),
        ("d_conv", config.conv_kernel, 4),
        ("expand", config.expand, 2),
        ("dt_rank", config.time_step_rank, -(-config.hidden_size // 16)),
        ("bias", config.use_bias, False),
        ("conv_bias", config.use_conv_bias, True),
    )
    ssm_cfg = {key: value for key, value, default in unusual if value != default}
    keys = {
        "d_model": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size - 3,
        "ssm_cfg": {**ssm_cfg, **(ssm_extra or {})},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    _write_config(folder, {**keys, **(extra or {})})
    tensors = {n.replace("backbone.embeddings", "backbone.embedding"): t for n, t in _stored(oracle, dtype).items()}
    write_weights(folder, tensors, "pytorch_model.bin")
    return oracle


def _stored(oracle: Oracle, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # clone: a tied head shares its storage with the embeddings, which safetensors refuses.
    return {name: tensor.to(dtype).clone() for name, tensor in oracle.state_dict().items()}


def _write_config(folder: Path, keys: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in keys.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")


CHECKPOINTS: Checkpoints = {
    "mamba": ("mamba/transformers", lambda folder: write_transformers(folder, mamba_config())),
    "falcon_mamba": ("mamba/transformers", lambda folder: write_transformers(folder, falcon_config(), prefix=False)),
    "mamba, mamba-ssm": ("mamba/mamba-ssm", lambda folder: write_mamba_ssm(folder, mamba_config())),
}
