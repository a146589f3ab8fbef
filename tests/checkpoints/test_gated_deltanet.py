"""fla's format in every version loads exactly, gives fla's vectors and round-trips; other variants are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints.formats_gated_deltanet import FLA_VECTORS, IDS, VARIANTS, tiny_fla_config, write_fla
from thalweg.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from thalweg.errors import CheckpointError
from thalweg.packing import Packing


def hidden(checkpoint: Checkpoint) -> Tensor:
    with torch.inference_mode():
        vectors: Tensor = checkpoint.model(IDS, Packing.whole([len(IDS)]))[0]
    return vectors


def assert_same_weights(checkpoint: Checkpoint, stored: dict[str, Tensor]) -> None:
    expected = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    actual = checkpoint.model.state_dict()
    assert len(actual) == len(expected)
    for name, tensor in actual.items():
        theirs = name
        for letter in "qkv":
            theirs = theirs.replace(f".{letter}.proj", f".{letter}_proj").replace(
                f".{letter}.conv", f".{letter}_conv1d"
            )
        assert torch.equal(tensor, expected[theirs].reshape(tensor.shape).to(tensor.dtype)), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_vectors_are_those_of_fla(tmp_path: Path, variant: str) -> None:
    write_fla(tmp_path, tiny_fla_config(**VARIANTS[variant]))
    want = torch.tensor(FLA_VECTORS[variant])
    assert (hidden(load_checkpoint(tmp_path))[-1, : len(want)] - want).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "model"])
def test_files(tmp_path: Path, prefix: bool, sharded: bool, bin: bool, dtype: torch.dtype) -> None:
    stored = write_fla(tmp_path, tiny_fla_config(), prefix=prefix, sharded=sharded, bin=bin, dtype=dtype)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.format) == ("gated_deltanet", "gated_deltanet/fla")
    assert (checkpoint.eos_token_id, checkpoint.bos_token_id, checkpoint.weights_dtype) == (2, 1, dtype)
    assert_same_weights(checkpoint, stored)


@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "model"])
def test_the_first_version_is_the_same_model(tmp_path: Path, prefix: bool) -> None:
    stored = write_fla(tmp_path / "old", tiny_fla_config(), first_version=True, prefix=prefix)
    write_fla(tmp_path / "new", tiny_fla_config())
    old, new = load_checkpoint(tmp_path / "old"), load_checkpoint(tmp_path / "new")
    assert old.config == new.config
    assert_same_weights(old, stored)
    assert torch.equal(hidden(old), hidden(new))


def test_a_head_that_is_tied_is_not_in_the_file(tmp_path: Path) -> None:
    stored = write_fla(tmp_path, tiny_fla_config(tie_word_embeddings=True))
    assert_same_weights(load_checkpoint(tmp_path), stored)


@pytest.mark.parametrize(
    ("changes", "d_mlp"),
    [
        ({"intermediate_size": 100}, 100),
        ({"hidden_size": 2048}, 5632),
        ({"hidden_size": 1536, "hidden_ratio": None}, 4096),
        ({"hidden_size": 96, "hidden_ratio": 3}, 256),
        ({"hidden_size": 97, "hidden_ratio": 4}, 512),
    ],
    ids=str,
)
def test_the_width_of_the_mlp(changes: dict[str, Any], d_mlp: int) -> None:
    from thalweg.checkpoints.fields import Fields
    from thalweg.checkpoints.gated_deltanet import read_fla

    config = {**tiny_fla_config(intermediate_size=None), **changes}
    assert read_fla(Fields(config, "config.json")).d_mlp == d_mlp


def test_absent_keys_take_the_defaults_of_fla() -> None:
    from thalweg.checkpoints.fields import Fields
    from thalweg.checkpoints.gated_deltanet import read_fla

    c = read_fla(Fields({"model_type": "gated_deltanet"}, "config.json"))
    assert (c.vocab_size, c.d_model, c.n_layers, c.n_heads, c.head_dim) == (32000, 2048, 21, 6, 256)
    assert (c.n_value_heads, c.value_head_dim, c.d_mlp, c.d_conv, c.conv_bias) == (6, 512, 5632, 4, False)
    assert (c.output_gate, c.allow_neg_eigval, c.norm_eps) == ("silu", False, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(tmp_path: Path, variant: str) -> None:
    write_fla(tmp_path / "source", tiny_fla_config(**VARIANTS[variant]))
    checkpoint = load_checkpoint(tmp_path / "source")
    save_checkpoint(checkpoint.model, tmp_path / "out", tokenizer_folder=None, embedding=None, dtype=torch.float32)
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    assert again.format == checkpoint.format
    assert torch.equal(hidden(again), hidden(checkpoint))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("gated_deltanet", ["GatedDeltaNetModel"])


def test_a_bias_of_the_convolutions(tmp_path: Path) -> None:
    """No version of fla's model makes one, but its layer can."""
    write_fla(tmp_path, tiny_fla_config(conv_bias=True))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    biases = {n.replace("1d.weight", "1d.bias"): torch.randn(len(t)) for n, t in tensors.items() if "conv1d" in n}
    save_file({**tensors, **biases}, file)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config.conv_bias
    assert torch.equal(
        checkpoint.model.get_parameter("layers.1.attn.v.conv.bias"), biases["model.layers.1.attn.v_conv1d.bias"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn": {"layers": [1], "num_heads": 2}}, r"attn names attention layers; memory would grow.*chunked_forward"),
        ({"attnres_block_size": 4}, "attnres_block_size is 4, which is not supported"),
        ({"hidden_act": "powlu"}, 'hidden_act is "powlu".*swish'),
        ({"norm_first": True}, "norm_first is true"),
        ({"output_gate_activation": "tanh"}, 'output_gate_activation is "tanh".*sigmoid'),
        ({"expand_v": 0.7}, r"head_dim × expand_v = 16 × 0\.7 must be an integer"),
        ({"num_v_heads": 3}, "n_value_heads must be a multiple of n_heads=2, got 3"),
        ({"use_gate": "yes"}, 'use_gate must be true or false, but is "yes"'),
    ],
    ids=str,
)
def test_refused_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_fla(tmp_path, tiny_fla_config())
    (tmp_path / "config.json").write_text(json.dumps(tiny_fla_config(**changes)))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.0.attn.extra", torch.zeros(2), r"1 left over: model\.layers\.0\.attn\.extra"),
        ("model.layers.0.attn.q_conv1d.weight", None, r"1 missing: layers\.0\.attn\.q\.conv\.weight"),
        (
            "model.layers.0.mlp.gate_proj.weight",
            torch.zeros(50, 32),
            r"\[50, 32\] in the file but should be \[48, 32\]",
        ),
        (
            "model.layers.0.mlp.gate_proj.weight",
            torch.zeros(96, 32),
            r"both .* are the parameter layers\.0\.mlp\.up_proj",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    write_fla(tmp_path, tiny_fla_config())
    file = tmp_path / "model.safetensors"
    tensors = {**load_file(file), name: value}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen3_next", "olmo_hybrid", "falcon_h1", "nemotron_h", "zamba2", "jamba"])
def test_hybrids_of_transformers_are_sent_to_chunked_forward(tmp_path: Path, model_type: str) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"of type {model_type} has attention layers; .*\.chunked_forward"):
        load_checkpoint(tmp_path)


def test_every_hybrid_of_the_table_is_a_model_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from thalweg.checkpoints.formats import ATTENTION_HYBRIDS

    assert ATTENTION_HYBRIDS - set(CONFIG_MAPPING) == set()
