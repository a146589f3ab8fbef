"""Checkpoints that say what cannot be: each is a CheckpointError at once, in little memory, that quotes the value."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

import thalweg
from tests.corpus.tiny import write_model
from tests.pooling.test_lexicon import make_lexicon
from thalweg.checkpoints import EmbeddingConfig, load_checkpoint, save_embedding_config
from thalweg.checkpoints.lexicon import write_lexicon
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.storage.untrusted_json import MAX_BYTES, MAX_DEPTH, read_json

from .formats import tiny_config, write_tokenizer, write_transformers
from .formats_gated_deltanet import tiny_fla_config
from .formats_gated_deltanet import write_fla as write_gated_deltanet
from .formats_mamba import falcon_config, mamba_config
from .formats_mamba import write_transformers as write_mamba
from .formats_rwkv7 import tiny_tensors, write_fla, write_pth
from .formats_xlstm import tiny_xlstm_config, write_xlstm

HUGE = (10**9, 10**18, 10**400, 1e300)
SECONDS = 5  # of the processor; all of these take milliseconds


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    """No test takes long, or more than 200 MiB at its worst moment."""
    if sys.platform != "linux":  # the figures are the kernel's
        yield
        return
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, began = _resident("VmRSS"), time.process_time()
    yield
    assert time.process_time() - began < SECONDS
    assert _resident("VmHWM") - before < 200 * 2**20


def _resident(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(folder)
    assert len(str(raised.value)) < 4000


WRITERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "mamba2": (
        lambda folder: write_transformers(folder, tiny_config()),
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "head_dim", "state_size", "n_groups", "expand"),
    ),
    "mamba": (
        lambda folder: write_mamba(folder, mamba_config()),
        ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "time_step_rank", "state_size"),
    ),
    "rwkv7": (
        lambda folder: write_fla(folder, tiny_tensors(vocab_size=96)),
        (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "head_dim",
            "value_dim",
            "intermediate_size",
            "a_low_rank_dim",
        ),
    ),
    "xlstm": (
        lambda folder: write_xlstm(folder, tiny_xlstm_config()),
        ("vocab_size", "hidden_size", "num_blocks", "num_heads", "qk_dim_factor", "v_dim_factor", "ffn_proj_factor"),
    ),
    "gated_deltanet": (
        lambda folder: write_gated_deltanet(folder, tiny_fla_config()),
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "head_dim", "expand_v", "intermediate_size"),
    ),
}


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, (_, keys) in WRITERS.items() for key in keys])
def test_sizes_beyond_what_the_files_hold(tmp_path: Path, family: str, key: str) -> None:
    WRITERS[family][0](tmp_path)
    for value in (*HUGE, 2_000_000):
        _edit(tmp_path / "config.json", **{key: value})
        _refused(tmp_path, "config.json")


@pytest.mark.parametrize("n_layers", [3, 1000, 10**9, 10**400])
def test_layers_that_the_files_do_not_have(tmp_path: Path, n_layers: int) -> None:
    write_transformers(tmp_path, tiny_config(), extra={"num_hidden_layers": n_layers})
    _refused(tmp_path, r"n_layers is .*, but the weight files hold 2 layers|layers, but no model|at most 2,147,483,647")


CONSTANTS = {
    "mamba2": "layer_norm_epsilon",
    "mamba": "layer_norm_epsilon",
    "rwkv7": "norm_eps",
    "xlstm": "eps",
    "gated_deltanet": "norm_eps",
}


@pytest.mark.parametrize("family", CONSTANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -1e-6, 1e300, 10**400, "1e-5", True], ids=repr)
def test_epsilons_that_no_norm_has(tmp_path: Path, family: str, value: Any) -> None:
    WRITERS[family][0](tmp_path)
    _edit(tmp_path / "config.json", **{CONSTANTS[family]: value})
    _refused(tmp_path, f"config.json: {CONSTANTS[family]} must be a number from 0 to 1, but is")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 10**400])
def test_other_constants(tmp_path: Path, value: Any) -> None:
    write_xlstm(tmp_path / "xlstm", tiny_xlstm_config(), extra={"gate_soft_cap": value})
    _refused(tmp_path / "xlstm", "gate_soft_cap must be a number from")
    write_mamba(tmp_path / "falcon", falcon_config(), extra={"mixer_rms_eps": value if value != 0 else -1e-9})
    _refused(tmp_path / "falcon", "mixer_rms_eps must be a number from 0 to 1")
    limit = [0, -value] if value == value and value > 0 else [value if value != 0 else 1, 0.5]
    write_transformers(tmp_path / "mamba2", tiny_config(), extra={"time_step_limit": limit})
    _refused(tmp_path / "mamba2", "time_step_limit must be two numbers")


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [96, 10**9, 10**400, "2", [10**9]], ids=lambda value: str(value)[:12])
def test_special_tokens_outside_the_vocabulary(tmp_path: Path, key: str, value: Any) -> None:
    write_transformers(tmp_path, tiny_config(), extra={key: value})
    _refused(tmp_path, f"{key} must be")


@pytest.mark.parametrize("value", [["mamba2"], {"a": 1}, 7, True])
def test_a_model_type_that_is_no_name(tmp_path: Path, value: Any) -> None:
    write_transformers(tmp_path, tiny_config(), extra={"model_type": value})
    _refused(tmp_path, "model_type must be a text")


JSON = {
    "brackets": ("[" * 200_000, f"nested more than {MAX_DEPTH} levels"),
    "objects": ('{"a":' * 200_000, f"nested more than {MAX_DEPTH} levels"),
    "closed": ("[" * 500 + "]" * 500, f"nested more than {MAX_DEPTH} levels"),
    "closed, in an object": ('{"a":' * 70 + "1" + "}" * 70, f"nested more than {MAX_DEPTH} levels"),
    "digits": ('{"vocab_size": ' + "9" * 5000 + "}", "is not a readable JSON file"),
    "twice": ('{"model_type": "mamba2", "model_type": "mamba"}', "the key 'model_type' is there twice"),
    "nothing": ("", "is not a readable JSON file"),
    "no object": ("[1, 2]", "must hold a JSON object"),
    "no UTF-8": ("\udcff{}", "is not a readable JSON file"),
}
FILES = (
    "config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "thalweg.json",
    "generation_config.json",
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", JSON)
def test_every_json_file_is_read_with_bounds(tmp_path: Path, file: str, name: str) -> None:
    write_transformers(tmp_path, tiny_config())
    write_tokenizer(tmp_path)
    save_embedding_config(tmp_path, EmbeddingConfig(), 32)
    content, message = JSON[name]
    (tmp_path / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as raised:
        load_checkpoint(tmp_path)
    assert file in str(raised.value)


@pytest.mark.parametrize(
    "file", ["modules.json", "1_Pooling/config.json", "model.safetensors.index.json", "tokenizer.json"]
)
def test_the_other_json_files(tmp_path: Path, file: str) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True)
    write_tokenizer(tmp_path)
    save_embedding_config(tmp_path, EmbeddingConfig(), 32)
    (tmp_path / file).write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=file):
        thalweg.load(tmp_path)


def test_a_file_of_any_size_is_read_up_to_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        os.truncate(file.fileno(), 100 * MAX_BYTES)  # a hole, which takes no room
    with pytest.raises(CheckpointError, match="has more than 64 MiB"):
        read_json(tmp_path / "config.json")


def test_what_published_files_hold_is_read(tmp_path: Path) -> None:
    deep = json.loads('{"a":' * (MAX_DEPTH - 1) + "[]" + "}" * (MAX_DEPTH - 1))
    content = {"limit": [0.0, float("inf")], "deep": deep["a"], "large": 10**4000, "text": "Für \ud83e\udda2"}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "x.json") == {**content, "text": "Für 🦢"}


STOCK = "sentence_transformers.models."


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    write_transformers(tmp_path, tiny_config())
    write_tokenizer(tmp_path)
    save_embedding_config(tmp_path, EmbeddingConfig(), 32)
    return tmp_path


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "os.system",
            "posix.system",
            "builtins.eval",
            "subprocess.Popen",
            "torch.Tensor",
            "numpy.Array",
            "system",
            "",
        ),
        *(
            "custom_st.run",
            "a b.C",
            "..C",
            "custom_st.C\n",
            "x" * 1000 + ".C",
            STOCK + "StaticEmbedding",
            STOCK + "Dense",
        ),
        *("sentence_transformers.os.system", "org/name--os.System", "--custom_st.C", 5, ["custom_st.C"], None),
    ],
)
def test_a_first_module_that_is_no_model(embedder: Path, kind: Any) -> None:
    modules = json.loads((embedder / "modules.json").read_text())
    modules[0]["type"] = kind
    (embedder / "modules.json").write_text(json.dumps(modules))
    _refused(embedder, "modules.json: (the first module must be a language model, but its type is|type must be a text)")


@pytest.mark.parametrize(
    "kind",
    [
        *("custom_st.Mamba2Transformer", "modeling_embed_mamba2.Mamba2Transformer", "custom_st.xLSTMTransformer"),
        *("org/repo-name--custom_st.Transformer", "thalweg_module.Model", STOCK + "Transformer"),
        "sentence_transformers.base.modules.transformer.Transformer",
        "thalweg.integrations.sentence_transformers.ThalwegModule",
        "thalweg.integrations.sentence_transformers.module.ThalwegModule",
    ],
)
def test_a_first_module_that_is_one(embedder: Path, kind: str) -> None:
    modules = json.loads((embedder / "modules.json").read_text())
    modules[0]["type"] = kind
    (embedder / "modules.json").write_text(json.dumps(modules))
    assert load_checkpoint(embedder).embedding == EmbeddingConfig()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling_mode must be a name or a list of names, but is 5"),
        ("1_Pooling/config.json", {"pooling_mode": [5]}, "pooling_mode must be a name or a list of names"),
        ("1_Pooling/config.json", {"pooling_mode": {"mean": 1}}, "pooling_mode must be a name or a list of names"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": "no"}, "pooling_mode_max_tokens must be true or false"),
        ("thalweg.json", {"n_eos": 10**12}, "n_eos must be an integer of at most 256"),
        ("thalweg.json", {"n_eos": 10**400}, "n_eos must be an integer of at most 256"),
        ("thalweg.json", {"head": 5}, "head must be a text"),
        ("thalweg.json", {"special_tokens": 5}, "special_tokens must be a text"),
        ("thalweg.json", {"special_tokens": "words"}, "special_tokens must be one of token, text, but is 'words'"),
        ("thalweg.json", {"head": "retr"}, "the model has no embedding head 'retr'; its heads: none"),
        ("config_sentence_transformers.json", {"similarity_fn_name": ["dot"]}, "similarity_fn_name must be a text"),
        ("config_sentence_transformers.json", {"default_prompt_name": 0}, "default_prompt_name must be a text"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "x" * 10**6}, "similarity must be one of"),
    ],
)
def test_settings_of_an_embedder(embedder: Path, file: str, changes: dict[str, Any], message: str) -> None:
    _edit(embedder / file, **changes)
    _refused(embedder, message)


@pytest.mark.parametrize("path", ["x" * 5000, "a\x00b", "\ud800", 5, ["1_Pooling"], {}])
def test_folders_that_cannot_be(embedder: Path, path: Any) -> None:
    modules = json.loads((embedder / "modules.json").read_text())
    modules[1]["path"] = path
    (embedder / "modules.json").write_text(json.dumps(modules))
    _refused(embedder, "is not a folder of this checkpoint|path must be a text")


@pytest.mark.parametrize("value", [5, [5], "</s>", {"id": 5}, [{"id": "two", "content": 5}]], ids=str)
def test_added_tokens_of_another_type(embedder: Path, value: Any) -> None:
    _edit(embedder / "tokenizer.json", added_tokens=value)
    with pytest.raises(CheckpointError):
        thalweg.load(embedder)


def test_a_tokenizer_at_which_the_library_panics(embedder: Path) -> None:
    """Which is no Exception, as Python has it."""
    tokenizer = json.loads((embedder / "tokenizer.json").read_text())
    tokenizer["model"] = {
        "type": "BPE",
        "continuing_subword_prefix": "longer",
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5},
        "merges": [["a", "b"]],
    }
    (embedder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer that tokenizers .* can read"):
        thalweg.load(embedder)


@pytest.mark.parametrize("file", ["tokenizer.json", "rwkv_vocab_v20230424.txt"])
def test_a_tokenizer_of_any_size(embedder: Path, file: str) -> None:
    with (embedder / file).open("wb") as stream:
        os.truncate(stream.fileno(), 100 * MAX_BYTES)
    with pytest.raises(CheckpointError, match=f"{file} has more than 64 MiB|{file} is not a readable"):
        thalweg.load(embedder)


@pytest.mark.parametrize("line", ["9" * 5000 + " 'a' 1", "1 'a' " + "9" * 5000, "² 'a' 1"])
def test_a_vocabulary_with_numbers_that_are_none(embedder: Path, line: str) -> None:
    (embedder / "rwkv_vocab_v20230424.txt").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"line 1 of .* is not `id repr"):
        thalweg.load(embedder)


def test_the_largest_id_counts_and_not_how_many_there_are(embedder: Path) -> None:
    tokenizer = json.loads((embedder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["sea"] = 10**6
    (embedder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="has ids up to 1000000, but the model only 96 embeddings"):
        thalweg.load(embedder)


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    """The folder of the codes of a small embedder, whose own folder is above it."""
    model = thalweg.load(write_model(tmp_path / "plain"))
    config = EmbeddingConfig(pooling="mean", lexicon=make_lexicon(model.config.vocab_size))
    model.save(tmp_path / "with")
    save_embedding_config(tmp_path / "with", config, 32, classes="either")
    assert thalweg.load(tmp_path / "with").dimension == 32 + 24
    return tmp_path / "with" / "2_Lexicon"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"d_lexicon": value}, "d_lexicon must be an integer of at most 32,768")
            for value in (10**9, 10**400, 32769)
        ),
        ({"d_lexicon": 5}, r"columns must be in 0\.\.4"),
        ({"in_features": 33}, "made for vectors of 33 dimensions, but the model has 32"),
        *(
            ({"strength": value}, "strength must be a number from")
            for value in (float("nan"), float("inf"), -1, 0, "1")
        ),
        *(({"exponent": value}, "exponent must be a number from") for value in (float("nan"), float("inf"), 10**400)),
    ],
)
def test_the_config_of_a_lexicon(lexicon: Path, changes: dict[str, Any], message: str) -> None:
    _edit(lexicon / "config.json", **changes)
    _refused(lexicon.parent, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": lambda v: np.where(v > 1, np.inf, v).astype(np.float16)}, "values must be finite"),
        ({"values": lambda v: v * np.float16("nan")}, "values must be finite"),
        ({"values": lambda v: v.astype(np.int8)}, "columns and values are int16 and int8"),
        ({"columns": lambda c: c.astype(np.float32)}, "columns and values are float32 and float16"),
        ({"columns": lambda c: c[:5], "values": lambda v: v[:5]}, "the lexicon has codes for 5 ids, but the model has"),
        ({"columns": lambda c: c[:, 0]}, r"columns and values must both be \(V, Z\)"),
        ({"columns": lambda c: None}, "it has no columns"),
    ],
)
def test_the_codes_of_a_lexicon(lexicon: Path, changes: dict[str, Callable[[Any], Any]], message: str) -> None:
    tensors = safetensors.numpy.load_file(lexicon / "model.safetensors")
    changed = {name: changes.get(name, lambda t: t)(tensor) for name, tensor in tensors.items()}
    kept = {name: np.ascontiguousarray(tensor) for name, tensor in changed.items() if tensor is not None}
    safetensors.numpy.save_file(kept, lexicon / "model.safetensors")
    _refused(lexicon.parent, message)


def test_a_long_name_of_a_head_is_cut(lexicon: Path) -> None:
    _edit(lexicon.parent / "thalweg.json", head="9" * 10**5)
    _refused(lexicon.parent, "a lexicon goes with the mean of all tokens and without a head")


def test_a_lexicon_too_wide_for_its_file_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a lexicon can be saved up to d_lexicon=32,768, not 40,000"):
        write_lexicon(tmp_path / "x", make_lexicon(50, d_lexicon=40_000), 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.foo.x": torch.zeros(3)}, r"left over: blocks\.foo\.x"),
        ({"blocks.999999999.x": torch.zeros(3)}, "1,000,000,000 layers, but no model has more than 1,024"),
        ({"blocks.7.x": torch.zeros(3)}, "n_layers is 8, but the weight files hold 3 layers"),
        ({"blocks." + "9" * 5000 + ".x": torch.zeros(3)}, "left over: blocks.9"),
        ({"blocks.01.att.r_k": torch.zeros(3)}, r"left over: blocks\.01"),
        ({5: torch.zeros(3)}, "must hold tensors by name, but one is under 5"),
        ({None: torch.zeros(3)}, "must hold tensors by name, but one is under None"),
        ({("a", "b"): torch.zeros(3)}, "must hold tensors by name, but one is under"),
        ({"emb.weight": torch.zeros(1).expand(10**6, 10**6)}, "hold.* tensors that repeat the same numbers"),
        ({"emb.weight": torch.zeros(96, 32).to_sparse()}, "sparse, quantised or without numbers"),
        ({"emb.weight": torch.zeros(96, 32, device="meta")}, "sparse, quantised or without numbers"),
        ({"emb.weight": torch.zeros(96, 32, dtype=torch.int32)}, "is torch.int32, but quantised weights"),
        ({"emb.weight": torch.zeros(())}, "should be a tensor of 2 axes"),
        ({"emb.weight": torch.zeros(0, 32)}, "vocab_size must be at least 1"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_of_a_pth(tmp_path: Path, changes: dict[Any, Any], message: str, zipped: bool) -> None:
    tensors = tiny_tensors(vocab_size=96)
    write_pth(tmp_path, tensors)
    (file,) = tmp_path.glob("*.pth")
    torch.save({**tensors, **changes}, file, _use_new_zipfile_serialization=zipped)
    _refused(tmp_path, message)


def test_an_archive_that_unpacks_to_more(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config(), bin=True)
    file = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    _refused(tmp_path, r"pytorch_model.bin is truncated or corrupt \(its entry .* is compressed\)")


def test_more_tensors_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.checkpoints.files.MAX_TENSORS", 5)
    write_transformers(tmp_path, tiny_config())
    _refused(tmp_path, "model.safetensors holds more tensors than any model has: the limit is 5")


def test_names_of_any_length_are_cut_in_errors(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), **{f"{i}" + "x" * 10**6: torch.zeros(1) for i in range(3)}}, file)
    _refused(tmp_path, "3 left over: 0xxx")
