"""Every public format loads exactly; every variant that the model lacks is refused by name."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from thalweg.checkpoints import load_checkpoint, mamba2
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.formats import FORMATS
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.mamba2 import Mamba2, Mamba2Config

from .conftest import assert_same_vectors, assert_same_weights
from .formats import mistral_config, tiny_config, write_mamba_ssm, write_mistral, write_transformers

TRANSFORMERS, MAMBA_SSM, MISTRAL = "mamba2/transformers", "mamba2/mamba-ssm", "mamba2/mistral"


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "backbone"])
def test_transformers(tmp_path: Path, prefix: bool, sharded: bool, bin: bool) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), prefix=prefix, sharded=sharded, bin=bin)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.format) == ("mamba2", TRANSFORMERS)
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert_same_weights(checkpoint, oracle)
    assert_same_vectors(checkpoint, oracle)


@pytest.mark.parametrize("safetensors", [False, True], ids=["bin", "safetensors"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
def test_mamba_ssm(tmp_path: Path, safetensors: bool, sharded: bool) -> None:
    config = tiny_config(tie_word_embeddings=True)
    oracle = write_mamba_ssm(tmp_path, config, safetensors=safetensors, sharded=sharded)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == MAMBA_SSM
    assert checkpoint.config.vocab_size == 96  # 93 in the file, padded up to a multiple of 16
    assert_same_weights(checkpoint, oracle)
    assert_same_vectors(checkpoint, oracle)


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
def test_mistral(tmp_path: Path, sharded: bool) -> None:
    oracle = write_mistral(tmp_path, mistral_config(), sharded=sharded)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == MISTRAL
    assert_same_weights(checkpoint, oracle)
    assert_same_vectors(checkpoint, oracle)


def test_mamba_ssm_defaults_are_the_published_ones(tmp_path: Path) -> None:
    """state-spaces/mamba2-* say nothing but `layer`: d_state 128, headdim 64, one group."""
    write_mamba_ssm(tmp_path, mistral_config(n_groups=1, tie_word_embeddings=True))
    assert json.loads((tmp_path / "config.json").read_text())["ssm_cfg"] == {"layer": "Mamba2"}
    config = load_checkpoint(tmp_path).config
    assert (config.d_state, config.head_dim, config.n_groups, config.n_heads, config.d_conv) == (128, 64, 1, 2, 4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lm_head", [False, True])
def test_the_head_is_not_needed_and_not_loaded(tmp_path: Path, tied: bool, lm_head: bool) -> None:
    oracle = write_transformers(tmp_path, tiny_config(tie_word_embeddings=tied), lm_head=lm_head)
    assert_same_weights(load_checkpoint(tmp_path), oracle)


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.", "model.backbone."])
@pytest.mark.parametrize("embeddings", ["embeddings", "embedding"])
def test_names_of_wrappers(tmp_path: Path, prefix: str, embeddings: str) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), prefix=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({prefix + name.replace("embeddings", embeddings): tensor for name, tensor in tensors.items()}, file)
    assert_same_weights(load_checkpoint(tmp_path), oracle)


def test_a_model_type_of_the_repositorys_own(tmp_path: Path) -> None:
    """As the published llama-embed-mamba2 models: transformers' weights, a custom class. Its code is not touched."""
    extra = {"model_type": "llama_embed_mamba2", "auto_map": {"AutoModel": "modeling_custom.CustomModel"}}
    oracle = write_transformers(tmp_path, tiny_config(), prefix=False, extra=extra)
    (tmp_path / "modeling_custom.py").write_text("raise SystemExit('remote code was run')")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == TRANSFORMERS
    assert_same_vectors(checkpoint, oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_dtypes(tmp_path: Path, dtype: torch.dtype, bin: bool) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), dtype=dtype, bin=bin)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.weights_dtype == dtype
    assert_same_weights(checkpoint, oracle, torch.float32)
    assert_same_vectors(checkpoint, oracle)
    assert_same_weights(load_checkpoint(tmp_path, dtype="auto"), oracle, dtype)
    assert_same_weights(load_checkpoint(tmp_path, dtype=torch.float64), oracle, torch.float64)


def test_per_head_parameters_keep_their_digits(tmp_path: Path) -> None:
    oracle = write_transformers(tmp_path, tiny_config())
    checkpoint = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert_same_weights(checkpoint, oracle, torch.bfloat16)
    assert torch.equal(
        checkpoint.model.get_parameter("layers.0.mixer.A_log"), oracle.backbone.get_parameter("layers.0.mixer.A_log")
    )


def test_a_wrong_dtype_is_refused(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    with pytest.raises(InvalidInputError, match=r"torch\.int8"):
        load_checkpoint(tmp_path, dtype=torch.int8)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bias": True},
        {"use_conv_bias": False},
        {"n_groups": 1},
        {"n_groups": 4},
        {"conv_kernel": 2},
        {"layer_norm_epsilon": 0.1},
        {"time_step_limit": (0.01, 0.2)},
        {"residual_in_fp32": False},
        {"expand": 4, "num_heads": 8},
    ],
    ids=str,
)
def test_variants(tmp_path: Path, changes: dict[str, Any]) -> None:
    oracle = write_transformers(tmp_path / "transformers", tiny_config(**changes))
    assert_same_vectors(load_checkpoint(tmp_path / "transformers"), oracle)
    if not {"layer_norm_epsilon"} & changes.keys():
        oracle = write_mamba_ssm(tmp_path / "mamba-ssm", tiny_config(**changes, tie_word_embeddings=True))
        assert_same_vectors(load_checkpoint(tmp_path / "mamba-ssm"), oracle)


@pytest.mark.parametrize(
    ("written", "limit"),
    [
        ("[0.0, Infinity]", (0.0, math.inf)),
        ('[0.0, {"__float__": "Infinity"}]', (0.0, math.inf)),
        ('["0.001", "inf"]', (0.001, math.inf)),
        ('[0, "Infinity"]', (0.0, math.inf)),
        ("[0.001, 0.1]", (0.001, 0.1)),
        ("null", (0.0, math.inf)),
    ],
)
def test_spellings_of_time_step_limit(tmp_path: Path, written: str, limit: tuple[float, float]) -> None:
    write_transformers(tmp_path, tiny_config(), extra={"time_step_limit": "HERE"})
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"HERE"', written))
    assert load_checkpoint(tmp_path).config.time_step_limit == limit


def test_absent_keys_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config(), extra=dict.fromkeys(("time_step_limit", "conv_kernel", "hidden_act")))
    config = load_checkpoint(tmp_path).config
    assert (config.time_step_limit, config.d_conv) == ((0.0, math.inf), 4)


def test_keys_that_the_reference_ignores(tmp_path: Path) -> None:
    extra = {"norm_before_gate": True, "rms_norm": False, "intermediate_size": 1, "time_step_floor": 9.0}
    oracle = write_transformers(tmp_path, tiny_config(), extra=extra)
    assert_same_vectors(load_checkpoint(tmp_path), oracle)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"hidden_act": "gelu"}, r'hidden_act is "gelu".*silu'),
        ({"num_heads": 3}, r"3 × 16 must equal expand × hidden_size = 2 × 32"),
        ({"n_groups": 3}, r"n_groups=3 does not divide n_heads=4"),
        ({"num_heads": "four"}, r'num_heads must be an integer of at least 1, but is "four"'),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1, but is 0"),
        ({"state_size": 8.5}, r"state_size must be an integer.* 8\.5"),
        ({"use_bias": "no"}, 'use_bias must be true or false, but is "no"'),
        ({"layer_norm_epsilon": "small"}, 'layer_norm_epsilon must be a number from 0 to 1, but is "small"'),
        ({"time_step_limit": [0.1]}, r"time_step_limit must be two numbers.*\[0\.1\]"),
        ({"time_step_limit": "01"}, "time_step_limit must be two numbers"),
        ({"time_step_limit": [0.2, 0.1]}, r"0 <= low <= high, but is \[0\.2, 0\.1\]"),
        ({"time_step_limit": [math.nan, 0.1]}, "0 <= low <= high"),
    ],
    ids=str,
)
def test_refused_transformers_configs(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    write_transformers(tmp_path, tiny_config(), extra=extra)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)


@pytest.mark.parametrize(
    ("extra", "ssm_extra", "message"),
    [
        ({"attn_layer_idx": [3]}, {}, r"attn_layer_idx is \[3\].*attention"),
        ({"d_intermediate": 64}, {}, "d_intermediate is 64.*MLP"),
        ({"rms_norm": False}, {}, "rms_norm is false.*LayerNorm"),
        ({}, {"layer": "Mamba3"}, 'layer is "Mamba3".*Mamba1 and Mamba2'),
        ({}, {"D_has_hdim": True}, "D_has_hdim is true"),
        ({}, {"d_ssm": 32}, "d_ssm is 32"),
        ({}, {"rmsnorm": False}, "rmsnorm is false"),
        ({}, {"norm_before_gate": True}, "norm_before_gate is true"),
        ({}, {"headdim": 24}, "headdim 24 must divide 2 × 32"),
        ({}, {"ngroups": 3}, "n_groups=3 does not divide"),
        ({"ssm_cfg": "Mamba2"}, {}, 'ssm_cfg must be an object, but is "Mamba2"'),
        ({"vocab_size": None}, {}, "has no 'vocab_size'"),
    ],
    ids=str,
)
def test_refused_mamba_ssm_configs(
    tmp_path: Path, extra: dict[str, Any], ssm_extra: dict[str, Any], message: str
) -> None:
    write_mamba_ssm(tmp_path, tiny_config(tie_word_embeddings=True), extra=extra, ssm_extra=ssm_extra)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_refused_mistral_config(tmp_path: Path) -> None:
    write_mistral(tmp_path, mistral_config(), extra={"rms_norm": False})
    with pytest.raises(CheckpointError, match="rms_norm is false"):
        load_checkpoint(tmp_path)


def test_two_formats_in_one_folder(tmp_path: Path) -> None:
    """As Codestral Mamba is published: each file once as transformers', once as Mistral's."""
    write_mistral(tmp_path, mistral_config())
    oracle = write_transformers(tmp_path, mistral_config(), sharded=True)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.format == TRANSFORMERS
    assert_same_weights(checkpoint, oracle)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "bert", "architectures": ["BertModel"]},
            r"model_type 'bert' and architectures \['BertModel'\]",
        ),
        ({"model_type": "s4", "hidden_size": 32, "state_size": 16}, "model_type 's4'"),
        (None, r"neither a config\.json nor a params\.json"),
    ],
    ids=str,
)
def test_unknown_formats(tmp_path: Path, config: dict[str, Any] | None, message: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(tmp_path)
    for format in FORMATS:
        assert format.name in str(raised.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint folder .*absent"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("norm_f.weight", None, r"1 missing: norm\.weight"),
        ("layers.0.mixer.extra", torch.zeros(1), r"1 left over: layers\.0\.mixer\.extra"),
        ("layers.2.norm.weight", torch.zeros(32), r"1 left over: layers\.2\.norm\.weight"),
        ("layers.01.norm.weight", torch.zeros(32), r"1 left over: layers\.01\.norm\.weight"),
        ("layers.0.mixer.in_proj.bias", torch.zeros(164), r"1 left over: layers\.0\.mixer\.in_proj\.bias"),
        ("classifier.weight", torch.zeros(2), r"1 left over: classifier\.weight"),
        ("embedding.weight", torch.zeros(96, 32), r"both embedding.weight and embeddings.weight|both embeddings"),
        ("backbone.norm_f.weight", torch.zeros(32), r"are the parameter norm\.weight"),
        (
            "embeddings.weight",
            torch.zeros(95, 32),
            r"embeddings\.weight is \[95, 32\] in the file but should be \[96, 32\]",
        ),
        (
            "layers.1.mixer.conv1d.weight",
            torch.zeros(96, 4),
            r"layers\.1\.mixer\.conv1d\.weight is \[96, 4\] in the file but should be \[96, 1, 4\]",
        ),
        (
            "layers.1.mixer.conv1d.weight",
            torch.zeros(96, 2, 4),
            r"\[96, 2, 4\] in the file but should be \[96, 1, 4\]",
        ),
        (
            "layers.0.mixer.in_proj.weight",
            torch.zeros(164, 32, dtype=torch.int8),
            r"in_proj\.weight is torch\.int8, but quantised weights are not supported",
        ),
        (
            "layers.0.mixer.in_proj.weight",
            torch.zeros(164, 32).to(torch.float8_e4m3fn),
            r"torch\.float8_e4m3fn, but quantised",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    write_transformers(tmp_path, tiny_config(), prefix=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({key: tensor for key, tensor in {**tensors, name: value}.items() if tensor is not None}, file)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(tmp_path)
    if "left over" in message or "missing" in message:
        assert all(format.name in str(raised.value) for format in FORMATS)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config(num_hidden_layers=4), prefix=False, extra={"num_hidden_layers": 2})
    with pytest.raises(CheckpointError, match=r"18 left over: layers\.2\.mixer\.A_log, .* … and 8 more"):
        load_checkpoint(tmp_path)


def test_the_documents_list_the_formats_in_the_order_in_which_they_are_tried() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    section = page.partition("## Formats\n")[2].partition("\nThe transformers format")[0]
    assert re.findall(r"^\| `([\w/-]+)` \|", section, re.MULTILINE) == [format.name for format in FORMATS]


def test_format_names_are_unique() -> None:
    names = [format.name for format in FORMATS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("format", mamba2.FORMATS, ids=lambda format: format.name)
def test_names_round_trip(format: Format) -> None:
    """What a format would write under a name, it reads back as that name."""
    config = Mamba2Config(8, d_model=8, n_layers=11, n_heads=2, head_dim=8, d_state=4, proj_bias=True)
    for name in Mamba2(config).state_dict():
        tensor_map, stored = format.stored_name(name)
        assert format.find(stored) == (tensor_map, name)
    assert format.find(format.prefixes[0] + "lm_head.weight.extra") is None
    with pytest.raises(AssertionError, match="no row for the parameter unheard_of"):
        format.stored_name("unheard_of")
