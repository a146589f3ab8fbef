"""Tiny random Mamba2 checkpoints in every public format, each made from one transformers model.

Every writer returns the oracle: a float32 `Mamba2ForCausalLM` whose weights are exactly those in the file (rounded to
the file's dtype), so `oracle.backbone(ids)` is what a loaded model has to reproduce.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM

Checkpoints: TypeAlias = dict[str, tuple[str, Callable[[Path], Any]]]
"""By a name: the format of a checkpoint, and what writes its config and weights into a folder; no tokenizer."""

WORDS = ("<unk>", "<s>", "</s>", "the", "river", "runs", "along", "its", "thalweg", "down", "to", "sea")


def tiny_config(**changes: Any) -> Mamba2Config:
    """Two layers, four heads in two groups; `changes` are keys of transformers' config."""
    keys: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Mamba2Config(**{**keys, **changes})


def mistral_config(**changes: Any) -> Mamba2Config:
    """The smallest shape that params.json can express, which fixes head_dim 64, state_size 128 and expand 2."""
    return tiny_config(
        **{"hidden_size": 64, "num_heads": 2, "head_dim": 64, "state_size": 128, "n_groups": 2, **changes}
    )


def make_oracle(config: Mamba2Config, dtype: torch.dtype = torch.float32, seed: int = 0) -> Mamba2ForCausalLM:
    """A random model, every parameter away from its special initial value (0, 1, log i)."""
    torch.manual_seed(seed)
    model = Mamba2ForCausalLM(config)
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "embeddings" in name else 0.2
            shift = 1.0 if "norm" in name else 0.0
            if not name.endswith(("A_log", "dt_bias")):
                parameter.copy_(shift + scale * torch.randn_like(parameter))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(dtype).float())
    return model


def write_transformers(
    folder: Path,
    config: Mamba2Config,
    *,
    prefix: bool = True,
    sharded: bool = False,
    bin: bool = False,
    dtype: torch.dtype = torch.float32,
    lm_head: bool | None = None,
    extra: dict[str, Any] | None = None,
) -> Mamba2ForCausalLM:
    """transformers' format: config.json and model.safetensors, or shards with an index, or .bin files.

    Without `prefix` it is a bare `Mamba2Model`. `lm_head` is stored if the config does not tie it, unless said
    otherwise. `extra` changes keys of config.json (None removes one).
    """
    oracle = make_oracle(config, dtype)
    tensors = _stored(oracle, dtype)
    if not prefix:
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    if not (prefix and not config.tie_word_embeddings if lm_head is None else lm_head):
        del tensors["lm_head.weight"]
    keys = json.loads(config.to_json_string())
    keys["architectures"] = ["Mamba2ForCausalLM" if prefix else "Mamba2Model"]
    _write_json(folder / "config.json", _changed(keys, extra))
    write_weights(folder, tensors, "pytorch_model.bin" if bin else "model.safetensors", sharded=sharded)
    return oracle


def write_mamba_ssm(
    folder: Path,
    config: Mamba2Config,
    *,
    safetensors: bool = False,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    pad_vocab_size_multiple: int = 16,
    extra: dict[str, Any] | None = None,
    ssm_extra: dict[str, Any] | None = None,
) -> Mamba2ForCausalLM:
    """mamba-ssm's format (state-spaces/mamba2-*); `vocab_size` is written three short of the padded one."""
    oracle = make_oracle(config, dtype)
    unusual: tuple[tuple[str, Any, Any], ...] = (
        ("d_state", config.state_size, 128),
        ("headdim", config.head_dim, 64),
        ("ngroups", config.n_groups, 1),
        ("d_conv", config.conv_kernel, 4),
        ("expand", config.expand, 2),
        ("dt_limit", list(config.time_step_limit), [0.0, float("inf")]),
        ("bias", config.use_bias, False),
        ("conv_bias", config.use_conv_bias, True),
    )
    ssm_cfg = {"layer": "Mamba2", **{key: value for key, value, default in unusual if value != default}}
    keys = {
        "d_model": config.hidden_size,
        "d_intermediate": 0,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size - 3,
        "ssm_cfg": _changed(ssm_cfg, ssm_extra),
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": pad_vocab_size_multiple,
        "tie_embeddings": True,
    }
    _write_json(folder / "config.json", _changed(keys, extra))
    weights = "model.safetensors" if safetensors else "pytorch_model.bin"
    write_weights(folder, _mamba_ssm_names(_stored(oracle, dtype)), weights, sharded=sharded)
    return oracle


def write_mistral(
    folder: Path,
    config: Mamba2Config,
    *,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    extra: dict[str, Any] | None = None,
) -> Mamba2ForCausalLM:
    """Mistral's format (Codestral Mamba): params.json and consolidated*.safetensors; see `mistral_config`."""
    oracle = make_oracle(config, dtype)
    keys = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "n_groups": config.n_groups,
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": False,
        "model_type": "mamba",
    }
    _write_json(folder / "params.json", _changed(keys, extra))
    tensors = {f"model.{name}": tensor for name, tensor in _mamba_ssm_names(_stored(oracle, dtype)).items()}
    write_weights(folder, tensors, "consolidated.safetensors", sharded=sharded)
    return oracle


def write_weights(folder: Path, tensors: dict[str, Tensor], single: str, *, sharded: bool = False) -> None:
    """One file, or two shards and their index."""
    if not sharded:
        _save(tensors, folder / single)
        return
    stem, extension = single.split(".")
    names, weight_map = list(tensors), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        shard = f"{stem}-{i:05}-of-00002.{extension}"
        _save({name: tensors[name] for name in part}, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / f"{single}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of `WORDS` in the files that transformers saves: <s> 1, </s> 2."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "model_max_length": 1000000,
        },
    )


def _stored(oracle: Mamba2ForCausalLM, dtype: torch.dtype) -> dict[str, Tensor]:
    # clone: a tied head shares its storage with the embeddings, which safetensors refuses.
    return {name: tensor.to(dtype).clone() for name, tensor in oracle.state_dict().items()}


def _mamba_ssm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("backbone.embeddings", "backbone.embedding"): tensor for name, tensor in tensors.items()}


def _changed(keys: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in {**keys, **(changes or {})}.items() if value is not None}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
