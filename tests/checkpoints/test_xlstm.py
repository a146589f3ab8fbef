"""The format of xLSTM-7b: what is read, what is refused, what is written, and the BOS that its texts begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import xLSTMModel

from tests.checkpoints.formats import WORDS, write_tokenizer
from tests.checkpoints.formats_xlstm import tiny_xlstm_config, write_xlstm
from thalweg import load
from thalweg.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.xlstm import XLSTM, XLSTMConfig
from thalweg.packing import Packing

BOS, EOS = 1, 2  # <s> and </s> of the tests' tokenizer


def vectors(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        hidden: torch.Tensor = checkpoint.model(ids, Packing.whole([len(ids)]))[0]
    return hidden


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "backbone"])
@pytest.mark.parametrize("published", [False, True], ids=["transformers-5", "published"])
def test_formats(tmp_path: Path, published: bool, prefix: bool, sharded: bool, bin: bool) -> None:
    oracle = write_xlstm(tmp_path, tiny_xlstm_config(), prefix=prefix, sharded=sharded, bin=bin, published=published)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.format) == ("xlstm", "xlstm/transformers")
    assert (checkpoint.bos_token_id, checkpoint.eos_token_id, checkpoint.pad_token_id) == (0, 2, 1)
    assert checkpoint.prepend_bos == published
    ids = torch.arange(3, 90)
    with torch.inference_mode():
        want = oracle.backbone(ids[None], use_cache=False).last_hidden_state[0]
    assert (vectors(checkpoint, ids) - want).abs().max() <= 1e-5 * want.abs().max()


def test_defaults_are_those_of_xlstm_7b() -> None:
    """As the published config.json states them; the up-projection is 2.667 * 4096 rounded up to a multiple of 64."""
    from thalweg.checkpoints.fields import Fields
    from thalweg.checkpoints.xlstm import read_transformers

    config = read_transformers(Fields({"model_type": "xlstm"}, "config.json"))
    assert config == XLSTMConfig(
        vocab_size=50304, d_model=4096, n_layers=32, n_heads=8, d_qk=2048, d_v=4096, d_ffn=10944
    )


def test_gates_stay_float32(tmp_path: Path) -> None:
    write_xlstm(tmp_path, tiny_xlstm_config(), dtype=torch.bfloat16)
    model = load_checkpoint(tmp_path, dtype="auto").model
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {f"layers.{n}.mlstm.{gate}.{kind}" for n in (0, 1) for gate in "if" for kind in ("weight", "bias")}


def test_of_two_numbers_of_blocks_the_one_that_transformers_builds_counts(tmp_path: Path) -> None:
    """xLSTMConfig(num_blocks=2) leaves num_hidden_layers at 32 and writes both."""
    write_xlstm(tmp_path, tiny_xlstm_config(), extra={"num_hidden_layers": 32})
    assert load_checkpoint(tmp_path).config.n_layers == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weight_mode": "fused"}, 'weight_mode is "fused", which is not supported: no published checkpoint'),
        ({"add_qk_norm": True}, "add_qk_norm is true, which is not supported"),
        ({"add_post_norm": True}, "add_post_norm is true, which is not supported"),
        ({"hidden_size": 64}, "hidden_size is 64 but embedding_dim is 32: they must be equal"),
        ({"num_heads": 3}, "n_heads=3 does not divide d_qk=16"),
        ({"gate_soft_cap": 0}, "gate_soft_cap must be a number from 0.001 to 1e\\+06, but is 0"),
        ({"force_bos_token_insert": "yes"}, 'force_bos_token_insert must be true or false, but is "yes"'),
        ({"use_bias": True}, r"missing: layers.0.ffn.down.bias, layers.0.ffn.gate.bias"),
        ({"num_blocks": 1}, "left over: backbone.blocks.1.ffn.proj_down.weight"),
        ({"ffn_proj_factor": 5.0}, r"proj_down.weight is \[32, 128\] in the file but should be \[32, 192\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_quote_the_value(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    write_xlstm(tmp_path, tiny_xlstm_config(), extra=extra)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_bias": True, "gate_soft_cap": 3.0, "norm_eps": 1e-4, "eps": 1e-3},
        {"hidden_size": 49, "num_heads": 1, "qk_dim_factor": 0.0205, "v_dim_factor": 0.9},
        {"hidden_size": 36, "ffn_proj_factor": 1.3, "ffn_round_up_to_multiple_of": 1, "qk_dim_factor": 0.28},
    ],
    ids=str,
)
def test_transformers_opens_what_is_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_xlstm(tmp_path / "source", tiny_xlstm_config(**changes), extra={"force_bos_token_insert": True})
    checkpoint = load_checkpoint(tmp_path / "source")
    save_checkpoint(checkpoint.model, tmp_path / "out", tokenizer_folder=None, embedding=None, dtype=torch.float32)
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    assert again.prepend_bos
    loaded: Any = xLSTMModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    ids = torch.arange(40)
    with torch.inference_mode():
        want = model(ids[None], use_cache=False).last_hidden_state[0]
    assert (vectors(checkpoint, ids) - want).abs().max() <= 1e-5 * want.abs().max()
    assert torch.equal(vectors(again, ids), vectors(checkpoint, ids))


@pytest.mark.parametrize("factor", range(1, 400, 7))
def test_written_factors_are_read_back_as_the_same_widths(factor: int) -> None:
    """width / d_model * d_model falls short of `width` for some, and transformers rounds down."""
    from thalweg.checkpoints.fields import Fields
    from thalweg.checkpoints.xlstm import read_transformers, write_transformers

    for d_model in (49, 96, 161, 4096):
        config = XLSTMConfig(
            vocab_size=9, d_model=d_model, n_layers=1, n_heads=1, d_qk=factor, d_v=factor, d_ffn=factor
        )
        assert read_transformers(Fields(write_transformers(config), "config.json")) == config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_xlstm(tmp_path, tiny_xlstm_config(bos_token_id=BOS, eos_token_id=EOS), published=True)
    write_tokenizer(tmp_path)
    return tmp_path


def expected(folder: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    last = vectors(load_checkpoint(folder), torch.tensor(ids))[-1]
    return (last / last.norm()).numpy()


def test_texts_begin_with_bos(folder: Path) -> None:
    embedder = load(folder)
    words = ["the", "river", "runs", "along"]
    ids = [BOS, *map(WORDS.index, words), EOS]
    want = expected(folder, ids)
    assert np.abs(embedder.encode(" ".join(words)) - want).max() <= 1e-5
    pieces = next(iter(embedder.encode_stream([iter(["the river", " runs along"])])))
    assert np.abs(pieces.vector - want).max() <= 1e-5
    assert (pieces.n_tokens, pieces.char_end) == (6, len(" ".join(words)))


def test_an_empty_text_is_bos_and_eos(folder: Path) -> None:
    empty, text = load(folder).encode(["", "the"])
    assert np.abs(empty - expected(folder, [BOS, EOS])).max() <= 1e-5
    assert np.abs(text - expected(folder, [BOS, WORDS.index("the"), EOS])).max() <= 1e-5


def test_max_length_counts_bos_and_eos(folder: Path) -> None:
    embedder = load(folder)
    cut = next(iter(embedder.encode_stream(["the river runs along"], max_length=3)))
    assert (cut.n_tokens, cut.truncated) == (3, True)
    assert np.abs(cut.vector - expected(folder, [BOS, WORDS.index("the"), EOS])).max() <= 1e-5
    with pytest.raises(InvalidInputError, match="max_length must be at least 2, not 1"):
        embedder.encode("the", max_length=1)


def test_sections_have_one_bos_for_the_document(folder: Path) -> None:
    """The vector of a section is that of the text so far: BOS at its start, EOS after its end."""
    sections = list(load(folder).encode_stream(["the river runs along"], section_size=3))
    ids = [BOS, *map(WORDS.index, ["the", "river", "runs", "along"])]
    assert np.abs(sections[0].vector - expected(folder, [*ids[:3], EOS])).max() <= 1e-5
    assert np.abs(sections[-1].vector - expected(folder, [*ids, EOS])).max() <= 1e-5


def test_without_the_flag_no_bos(tmp_path: Path) -> None:
    write_xlstm(tmp_path, tiny_xlstm_config(bos_token_id=BOS, eos_token_id=EOS))
    write_tokenizer(tmp_path)
    assert np.abs(load(tmp_path).encode("the") - expected(tmp_path, [WORDS.index("the"), EOS])).max() <= 1e-5


def test_a_forced_bos_that_nothing_names(folder: Path) -> None:
    for name, key in (("config.json", "bos_token_id"), ("tokenizer_config.json", "bos_token")):
        keys = json.loads((folder / name).read_text())
        del keys[key]
        (folder / name).write_text(json.dumps(keys))
    with pytest.raises(CheckpointError, match=r"force_bos_token_insert.*add bos_token_id to config.json"):
        load(folder)


def test_sizes_that_make_no_model() -> None:
    with pytest.raises(InvalidInputError, match="n_layers must be at least 1, got 0"):
        XLSTM(XLSTMConfig(vocab_size=9, d_model=8, n_layers=0, n_heads=1, d_qk=4, d_v=8, d_ffn=8))
