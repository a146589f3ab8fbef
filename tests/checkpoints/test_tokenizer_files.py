"""Written tokenizers: transformers gets from them the ids that thalweg makes, whatever the source's settings were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from thalweg.checkpoints.tokenizer_files import write_tokenizer
from thalweg.checkpoints.tokens import TokenIds, ends_with_eos
from thalweg.errors import InvalidInputError
from thalweg.tokenization.tokenizer import Tokenizer

from .formats import write_tokenizer as write_source

TEXTS = ["the river runs", "", "along its thalweg </s> down to the sea " * 100, "the, river: <s>"]
TOKENS = TokenIds(eos=2, bos=1)
FRONT = {"SpecialToken": {"id": "<s>", "type_id": 0}}
LLAMA = {
    "type": "TemplateProcessing",
    "single": [FRONT, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [FRONT, {"Sequence": {"id": "A", "type_id": 0}}, FRONT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "puts BOS first": {"post_processor": LLAMA},
    "cuts": {"truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}},
    "offsets only": {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    write_source(tmp_path / "source")
    return tmp_path / "source"


def _change(source: Path, **changes: Any) -> None:
    content = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize(("bos", "n_eos"), [(False, 0), (False, 1), (True, 1), (False, 3)])
def test_the_same_ids_as_ours(source: Path, tmp_path: Path, changes: str, bos: bool, n_eos: int) -> None:
    _change(source, **CHANGES[changes])
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "model_max_length": 512,
        "eos_token": "</s>",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(source, out, TOKENS, prefix=[1] * bos, suffix=[2] * n_eos)
    theirs = AutoTokenizer.from_pretrained(out)
    ours = Tokenizer.from_folder(
        source, eos_token_id=2 if n_eos else None, bos_token_id=1 if bos else None, n_eos=n_eos
    )
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
    batch = theirs(TEXTS, padding=True)
    assert [sum(mask) for mask in batch["attention_mask"]] == [len(ids) for ids in ours.encode_batch(TEXTS)]
    assert ends_with_eos(out) == bool(n_eos)
    again = Tokenizer.from_folder(out, eos_token_id=None)
    assert [ids.tolist() for ids in again.encode_batch(TEXTS)] == [
        ids.tolist() for ids in Tokenizer.from_folder(source, eos_token_id=None).encode_batch(TEXTS)
    ]


def test_what_is_right_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        folder.mkdir()
    write_tokenizer(source, out, TOKENS, prefix=[], suffix=[2])
    write_tokenizer(out, again, TOKENS, prefix=[], suffix=[2])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    before = (out / "tokenizer.json").read_bytes()
    write_tokenizer(out, out, TOKENS, prefix=[], suffix=[2])  # where it lies
    assert (out / "tokenizer.json").read_bytes() == before


def test_a_tokenizer_without_padding_pads_with_its_end_token(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>", "lstrip": False}}))
    (tmp_path / "out").mkdir()
    write_tokenizer(source, tmp_path / "out", TOKENS, prefix=[], suffix=[2])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "</s>"


def test_other_tokenizers_are_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / "rwkv_vocab_v20230424.txt").write_text("1 'a' 1\n")
    write_tokenizer(source, out, TokenIds(eos=0), prefix=[], suffix=[0])
    assert [path.name for path in out.iterdir()] == ["rwkv_vocab_v20230424.txt"]
    (source / "rwkv_vocab_v20230424.txt").unlink()
    with pytest.raises(InvalidInputError, match="holds no tokenizer file"):
        write_tokenizer(source, out, TokenIds(), prefix=[], suffix=[])


def test_no_tokenizer_json_ends_nothing(tmp_path: Path) -> None:
    assert not ends_with_eos(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert not ends_with_eos(tmp_path)
