"""Which file's word counts for the special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thalweg.checkpoints import load_checkpoint
from thalweg.checkpoints.tokens import TokenIds, read_token_ids
from thalweg.errors import CheckpointError

from .formats import mistral_config, tiny_config, write_mamba_ssm, write_mistral, write_tokenizer, write_transformers

NAMED = {"eos_token": "</s>", "bos_token": {"content": "<s>", "special": True}, "pad_token": None}


def _write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def _ids(folder: Path, config: dict[str, Any] | None = None, vocab_size: int = 100) -> TokenIds:
    return read_token_ids(folder, config or {}, TokenIds(eos=90, bos=91, pad=92), vocab_size)


def test_nothing_stated(tmp_path: Path) -> None:
    assert _ids(tmp_path) == TokenIds(90, 91, 92)
    assert _ids(tmp_path, vocab_size=91) == TokenIds(90, None, None)


def test_the_tokenizer_overrules_the_models_config(tmp_path: Path) -> None:
    config = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    _write(tmp_path, generation_config={"eos_token_id": [5, 6], "bos_token_id": 7})
    assert _ids(tmp_path, config) == TokenIds(5, 7, 0)
    listed = {"2": {"content": "</s>"}, "1": {"content": "<s>"}}
    _write(tmp_path, tokenizer_config={**NAMED, "added_tokens_decoder": listed})
    assert _ids(tmp_path, config) == TokenIds(2, 1, 0)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"added_tokens": [{"id": 4, "content": "</s>"}], "model": {"vocab": {"<s>": 3}}},
        {"added_tokens": None, "model": {"vocab": {"<s>": 3, "</s>": 4}}},
        {"model": {"vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0], ["<s>", 0.0], ["</s>", 0.0]]}},
    ],
    ids=["added", "vocabulary", "unigram"],
)
def test_ids_from_the_vocabulary(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    _write(tmp_path, tokenizer=tokenizer, special_tokens_map=NAMED)
    assert _ids(tmp_path) == TokenIds(4, 3, 92)


@pytest.mark.parametrize("nothing", [None, [], -1, [-1]])
def test_no_id_is_stated(tmp_path: Path, nothing: object) -> None:
    assert _ids(tmp_path, {"eos_token_id": nothing}).eos == 90


@pytest.mark.parametrize("kind", ["eos", "bos", "pad"])
@pytest.mark.parametrize("nonsense", [True, "2", 2.5, -2, 100, 10**9, 10**400, [100], ["2"], {}, float("nan")])
def test_ids_that_cannot_be(tmp_path: Path, kind: str, nonsense: object) -> None:
    with pytest.raises(CheckpointError, match=f"the config: {kind}_token_id must be"):
        _ids(tmp_path, {f"{kind}_token_id": nonsense})


@pytest.mark.parametrize("id_", ["²", "9" * 5000, "-1", "two", ""])
def test_added_tokens_under_what_is_no_id(tmp_path: Path, id_: str) -> None:
    _write(tmp_path, tokenizer_config={**NAMED, "added_tokens_decoder": {id_: {"content": "</s>"}}})
    with pytest.raises(CheckpointError, match="added_tokens_decoder must be by token ids"):
        _ids(tmp_path)


@pytest.mark.parametrize("nonsense", [5, "</s>", [5, None, []], {"content": "</s>"}, [{"content": 5, "id": "x"}]])
def test_added_tokens_of_another_type(tmp_path: Path, nonsense: object) -> None:
    """Nobody's ids: what the tokenizers library makes of the file is seen when the tokenizer is loaded."""
    _write(tmp_path, tokenizer={"added_tokens": nonsense, "model": nonsense}, special_tokens_map=NAMED)
    assert _ids(tmp_path) == TokenIds(90, 91, 92)
    _write(tmp_path, tokenizer_config={**NAMED, "added_tokens_decoder": [5]})
    with pytest.raises(CheckpointError, match="added_tokens_decoder must be an object, but is"):
        _ids(tmp_path)


def test_configs_beside_the_rwkv_vocabulary_do_not_count(tmp_path: Path) -> None:
    """fla's config class says 1 and 2, which are bytes of text in that vocabulary."""
    config = {"eos_token_id": 2, "bos_token_id": 1}
    assert _ids(tmp_path, config).eos == 2
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("1 '\\x00' 1\n")
    assert _ids(tmp_path, config) == TokenIds(90, 91, 92)


def test_of_checkpoints(tmp_path: Path) -> None:
    write_transformers(tmp_path / "a", tiny_config(eos_token_id=17))
    assert load_checkpoint(tmp_path / "a").eos_token_id == 17
    write_tokenizer(tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    assert (checkpoint.eos_token_id, checkpoint.bos_token_id, checkpoint.pad_token_id) == (2, 1, 0)
    write_mamba_ssm(tmp_path / "b", tiny_config(tie_word_embeddings=True))
    assert load_checkpoint(tmp_path / "b").eos_token_id == 0
    write_mistral(tmp_path / "c", mistral_config())
    checkpoint = load_checkpoint(tmp_path / "c")
    assert (checkpoint.eos_token_id, checkpoint.bos_token_id, checkpoint.pad_token_id) == (2, 1, None)
