"""A checkpoint folder and its tokenizer."""

import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tokenization.shapes import TRAINING_TEXT, reference, shape_json
from thalweg.errors import CheckpointError, MissingExtraError
from thalweg.tokenization.tokenizer import Tokenizer


def test_from_folder_reads_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(shape_json("llama"), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_id=2)
    assert tokenizer.encode_batch(["the river"])[0].tolist() == [*reference("llama").encode("the river").ids, 2]
    assert tokenizer.vocab_size == reference("llama").get_vocab_size()
    assert tokenizer.eos_token_id == 2


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer \(looked for tokenizer.json, tokenizer.model"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(CheckpointError, match=r"no tokenizer_config\.json with a tokenizer_class"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer that tokenizers"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model.v3").write_bytes(b"")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match="pip install transformers sentencepiece protobuf"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_slow_files_are_converted_and_never_run_code(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_id=3)
    assert tokenizer.encode_batch(["The rivers"])[0].tolist() == [5, 6, 7, 3]


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3"])
def test_sentencepiece_models_are_converted(name: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    pytest.importorskip("transformers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT * 3),
        model_writer=model,
        vocab_size=450,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / name).write_bytes(model.getvalue())
    text = "The river, 12  boats\n日本語"
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(text)
    assert Tokenizer.from_folder(tmp_path, eos_token_id=2).encode_batch([text])[0].tolist() == [*expected, 2]
