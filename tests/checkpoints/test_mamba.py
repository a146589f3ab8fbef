"""Every public format of Mamba1 and Falcon-Mamba loads exactly; what the model lacks is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.checkpoints.formats_mamba import (
    Oracle,
    falcon_config,
    mamba_config,
    write_mamba_ssm,
    write_transformers,
)
from thalweg.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.mamba import FORMATS
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.mamba import Mamba, MambaConfig
from thalweg.packing import Packing

TRANSFORMERS, MAMBA_SSM = "mamba/transformers", "mamba/mamba-ssm"
both = pytest.mark.parametrize("config", [mamba_config, falcon_config], ids=["mamba", "falcon"])


def assert_same_weights(checkpoint: Checkpoint, oracle: Oracle, dtype: torch.dtype = torch.float32) -> None:
    """Every parameter equals the oracle's; those that go through exponentials are at least float32."""
    expected, actual = oracle.backbone.state_dict(), checkpoint.model.state_dict()
    assert len(actual) == len(expected)
    for name, tensor in actual.items():
        theirs = name.replace(".conv.", ".conv1d.").replace("dt_bias", "dt_proj.bias")
        stored = expected["norm_f.weight" if name == "norm.weight" else theirs]
        wide = name.endswith(("A_log", "dt_bias", ".D"))
        assert tensor.dtype == (torch.float32 if wide else dtype), name
        assert torch.equal(tensor, stored.reshape(tensor.shape).to(tensor.dtype)), name


@both
@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "backbone"])
def test_transformers(tmp_path: Path, config: Any, prefix: bool, sharded: bool, bin: bool) -> None:
    oracle = write_transformers(tmp_path, config(), prefix=prefix, sharded=sharded, bin=bin)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.format) == ("mamba", TRANSFORMERS)
    assert_same_weights(checkpoint, oracle)
    assert (checkpoint.config.mixer_norm_eps is None) == (config is mamba_config)


def test_mamba_ssm(tmp_path: Path) -> None:
    oracle = write_mamba_ssm(tmp_path, mamba_config(state_size=16))
    assert json.loads((tmp_path / "config.json").read_text())["ssm_cfg"] == {}
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == MAMBA_SSM
    assert checkpoint.config == MambaConfig(96, 32, n_layers=2, d_inner=64, dt_rank=2, d_state=16)
    assert checkpoint.eos_token_id == 0
    assert_same_weights(checkpoint, oracle)


@pytest.mark.parametrize(
    ("extra", "ssm_extra"),
    [
        ({"model_type": "mamba"}, {}),
        ({"attn_layer_idx": [], "d_intermediate": 0, "tie_embeddings": True}, {"layer": "Mamba1"}),
        ({}, {"dt_rank": "auto", "dt_init": "random", "dt_scale": 1.0}),
    ],
    ids=str,
)
def test_spellings_of_mamba_ssm(tmp_path: Path, extra: dict[str, Any], ssm_extra: dict[str, Any]) -> None:
    oracle = write_mamba_ssm(tmp_path, mamba_config(), extra=extra, ssm_extra=ssm_extra)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == MAMBA_SSM
    assert_same_weights(checkpoint, oracle)


def test_converted_configs_keep_the_keys_of_mamba_ssm(tmp_path: Path) -> None:
    """As state-spaces/mamba-*-hf: what transformers reads holds, whatever stands beside it."""
    extra = {"d_model": 7, "n_layer": 9, "ssm_cfg": {}, "rms_norm": True, "pad_vocab_size_multiple": 8}
    oracle = write_transformers(tmp_path, mamba_config(), extra=extra)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == TRANSFORMERS
    assert_same_weights(checkpoint, oracle)


@pytest.mark.parametrize("embeddings", ["embeddings", "embedding"])
@pytest.mark.parametrize("prefix", ["model.", "model.backbone."])
def test_names_of_wrappers(tmp_path: Path, prefix: str, embeddings: str) -> None:
    oracle = write_transformers(tmp_path, mamba_config(), prefix=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({prefix + name.replace("embeddings", embeddings): tensor for name, tensor in tensors.items()}, file)
    assert_same_weights(load_checkpoint(tmp_path), oracle)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_not_needed_and_not_loaded(tmp_path: Path, tied: bool) -> None:
    oracle = write_transformers(tmp_path, mamba_config(tie_word_embeddings=tied))
    assert_same_weights(load_checkpoint(tmp_path), oracle)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes(tmp_path: Path, config: Any, dtype: torch.dtype) -> None:
    oracle = write_transformers(tmp_path, config(), dtype=dtype)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.weights_dtype == dtype
    assert_same_weights(checkpoint, oracle)
    assert_same_weights(load_checkpoint(tmp_path, dtype="auto"), oracle, dtype)


@both
def test_absent_keys_take_the_defaults_of_transformers(tmp_path: Path, config: Any) -> None:
    """intermediate_size and time_step_rank are derived, "auto" spelt out or not."""
    absent = ("intermediate_size", "time_step_rank", "conv_kernel", "hidden_act", "use_bias", "mixer_rms_eps")
    oracle = write_transformers(tmp_path, config(expand=2), extra=dict.fromkeys(absent))
    assert_same_weights(load_checkpoint(tmp_path), oracle)
    write_transformers(tmp_path, config(), extra={"time_step_rank": "auto", "hidden_act": "swish"})
    read = load_checkpoint(tmp_path).config
    assert (read.dt_rank, read.d_conv, read.activation) == (2, 4, "silu")
    assert read.mixer_norm_eps == (None if config is mamba_config else 1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"hidden_act": "mish"}, 'hidden_act is "mish".*silu, gelu'),
        ({"time_step_rank": "many"}, 'time_step_rank must be an integer of at least 1, but is "many"'),
        ({"state_size": 8.5}, r"state_size must be an integer.* 8\.5"),
        ({"use_conv_bias": 1}, "use_conv_bias must be true or false, but is 1"),
        ({"num_hidden_layers": 3}, "n_layers is 3, but the weight files hold 2 layers"),
        ({"use_bias": True}, r"4 missing: layers\.0\.mixer\.in_proj\.bias"),
        ({"intermediate_size": 48}, r"in_proj\.weight is \[128, 32\] in the file but should be \[96, 32\]"),
    ],
    ids=str,
)
def test_refused_transformers_configs(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    write_transformers(tmp_path, mamba_config(), extra=extra)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("extra", "ssm_extra", "message"),
    [
        ({"attn_layer_idx": [3]}, {}, r"attn_layer_idx is \[3\].*attention"),
        ({"d_intermediate": 64}, {}, "d_intermediate is 64.*MLP"),
        ({"rms_norm": False}, {}, "rms_norm is false.*LayerNorm"),
        ({}, {"layer": "Mamba3"}, 'layer is "Mamba3".*only Mamba1 and Mamba2'),
        ({}, {"complex": True, "d_state": 8}, "unknown settings of a Mamba1 layer: complex"),
        ({}, {"dt_rank": 0}, "dt_rank must be an integer of at least 1, but is 0"),
        ({"ssm_cfg": "Mamba1"}, {}, 'ssm_cfg must be an object, but is "Mamba1"'),
        ({"vocab_size": None}, {}, "has no 'vocab_size'"),
    ],
    ids=str,
)
def test_refused_mamba_ssm_configs(
    tmp_path: Path, extra: dict[str, Any], ssm_extra: dict[str, Any], message: str
) -> None:
    write_mamba_ssm(tmp_path, mamba_config(), extra=extra, ssm_extra=ssm_extra)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_a_falcon_config_over_mamba_weights_differs_and_cannot_be_told_from_tensors(tmp_path: Path) -> None:
    """The norms have no weights: only `model_type` says whether they are there."""
    write_transformers(tmp_path, mamba_config())
    plain = load_checkpoint(tmp_path).model
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "falcon_mamba"}))
    normed = load_checkpoint(tmp_path).model
    ids = torch.arange(20)
    with torch.inference_mode():
        assert (plain(ids, Packing.whole([20]))[0] - normed(ids, Packing.whole([20]))[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    "config",
    [
        mamba_config(),
        mamba_config(use_bias=True, use_conv_bias=False, conv_kernel=3, hidden_act="gelu", time_step_rank=5),
        mamba_config(expand=3, layer_norm_epsilon=1e-3, state_size=16),
        falcon_config(),
        falcon_config(intermediate_size=40, mixer_rms_eps=0.05),
    ],
    ids=["mamba", "mamba, variants", "mamba, shape", "falcon", "falcon, variants"],
)
def test_transformers_opens_what_is_saved(tmp_path: Path, config: Any) -> None:
    write_transformers(tmp_path / "source", config)
    checkpoint = load_checkpoint(tmp_path / "source")
    save_checkpoint(checkpoint.model, tmp_path / "out", tokenizer_folder=None, embedding=None, dtype=torch.float32)
    theirs, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert type(theirs).__name__ == ("FalconMambaModel" if config.model_type == "falcon_mamba" else "MambaModel")
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    ids = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = theirs(ids[None]).last_hidden_state[0]
        for model in (checkpoint.model, again.model):
            got, _ = model(ids, Packing.whole([40]))
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_names_round_trip(format: Format) -> None:
    """What a format would write under a name, it reads back as that name."""
    config = MambaConfig(8, d_model=8, n_layers=11, d_inner=16, dt_rank=2, proj_bias=True)
    for name in Mamba(config).state_dict():
        tensor_map, stored = format.stored_name(name)
        assert format.find(stored) == (tensor_map, name)


def test_the_config_of_the_model_refuses_what_it_lacks() -> None:
    with pytest.raises(InvalidInputError, match=r"activation must be one of silu, .*, got 'mish'"):
        MambaConfig(96, 32, n_layers=2, d_inner=64, dt_rank=2, activation="mish")
    with pytest.raises(InvalidInputError, match="dt_rank must be at least 1, got 0"):
        MambaConfig(96, 32, n_layers=2, d_inner=64, dt_rank=0)
