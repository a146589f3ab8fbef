"""Saved folders: thalweg, transformers and sentence-transformers open them and compute the same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import Mamba2Model

from thalweg.checkpoints import Checkpoint, EmbeddingConfig, load_checkpoint, save_checkpoint
from thalweg.errors import InvalidInputError
from thalweg.packing import Packing

from .formats import WORDS, tiny_config, write_tokenizer, write_transformers

TEXTS = ["the river runs", "its thalweg", "along the river down to the sea"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write_transformers(tmp_path / "source", tiny_config())
    return load_checkpoint(tmp_path / "source")


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return folder


def _save(checkpoint: Checkpoint, folder: Path, **changes: Any) -> None:
    settings = {"tokenizer_folder": None, "embedding": None, "dtype": torch.float32}
    save_checkpoint(checkpoint.model, folder, **{**settings, **changes})


def _hidden(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        hidden: torch.Tensor = checkpoint.model(torch.tensor(ids), Packing.whole([len(ids)]))[0]
    return hidden


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_bias": True, "use_conv_bias": False},
        {"time_step_limit": (0.01, 0.2), "layer_norm_epsilon": 1e-3},
        {"time_step_limit": (0.01, float("inf")), "n_groups": 1, "conv_kernel": 3},
    ],
    ids=str,
)
def test_transformers_opens_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_transformers(tmp_path / "source", tiny_config(**changes))
    checkpoint = load_checkpoint(tmp_path / "source")
    _save(checkpoint, tmp_path / "out")
    loaded: Any = Mamba2Model.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    ids = list(range(40))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).last_hidden_state[0]
    assert (_hidden(checkpoint, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(tmp_path: Path, checkpoint: Checkpoint, tokenizer_folder: Path, dtype: torch.dtype) -> None:
    embedding = EmbeddingConfig(pooling="mean", prompts={"query": "the "}, append_eos=False)
    _save(checkpoint, tmp_path / "out", dtype=dtype, embedding=embedding, tokenizer_folder=tokenizer_folder)
    again = load_checkpoint(tmp_path / "out")
    assert again.config == checkpoint.config
    assert again.embedding == embedding
    assert again.weights_dtype == dtype
    assert (again.eos_token_id, again.bos_token_id, again.pad_token_id) == (2, 1, 0)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    for (name, saved), original in zip(again.model.named_parameters(), checkpoint.model.parameters(), strict=True):
        exact = name.endswith(("A_log", "dt_bias", ".D"))
        assert torch.equal(saved, original if exact else original.to(dtype).float()), name


def test_the_files_are_strict_json_and_say_their_framework(tmp_path: Path, checkpoint: Checkpoint) -> None:
    _save(checkpoint, tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    config = json.loads(text, parse_constant=pytest.fail)  # no bare Infinity
    assert (config["model_type"], config["architectures"], config["dtype"]) == ("mamba2", ["Mamba2Model"], "float32")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_half_size_files_at_full_precision(tmp_path: Path, checkpoint: Checkpoint) -> None:
    _save(checkpoint, tmp_path / "out", dtype=torch.float16, load_dtype=torch.float32)
    assert Mamba2Model.from_pretrained(tmp_path / "out").dtype == torch.float32
    assert load_checkpoint(tmp_path / "out").weights_dtype == torch.float16


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers_opens_it(
    tmp_path: Path, checkpoint: Checkpoint, tokenizer_folder: Path, pooling: Any, normalize: bool
) -> None:
    """The stock modules, without remote code, give the vectors that the config promises, the closing token included."""
    from sentence_transformers import SentenceTransformer

    embedding = EmbeddingConfig(pooling=pooling, normalize=normalize, prompts={"query": "the river "})
    _save(checkpoint, tmp_path / "out", embedding=embedding, tokenizer_folder=tokenizer_folder)
    stock = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert stock.prompts["query"] == "the river "
    assert stock.similarity_fn_name == "cosine"
    for text, vector in zip(TEXTS, stock.encode(TEXTS, convert_to_tensor=True), strict=True):
        hidden = _hidden(checkpoint, [*(WORDS.index(word) for word in text.split()), WORDS.index("</s>")])
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        expected = F.normalize(expected, dim=0) if normalize else expected
        assert (vector - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_nothing_is_left_of_a_failed_save(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("thalweg.checkpoints.saver.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        _save(checkpoint, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_folder(tmp_path: Path, checkpoint: Checkpoint) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _save(checkpoint, out)  # an empty one is fine
    with pytest.raises(InvalidInputError, match="exists; choose another folder or overwrite it"):
        _save(checkpoint, out)
    (out / "stale").touch()
    again = load_checkpoint(out)
    _save(again, out, overwrite=True)  # from weights mapped from the very file that is replaced
    assert not (out / "stale").exists()
    assert torch.equal(
        load_checkpoint(out).model.get_parameter("norm.weight"), checkpoint.model.get_parameter("norm.weight")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_old_folder_comes_back(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    _save(checkpoint, out)
    before = (out / "config.json").read_bytes()
    rename = Path.rename

    def fail_for_the_new(path: Path, target: Path) -> Path:
        if path.suffix == ".new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no"):
        _save(checkpoint, out, overwrite=True)
    assert (out / "config.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_only_checkpoints_are_replaced(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "diary.txt").touch()
    with pytest.raises(InvalidInputError, match="is no checkpoint, so it is not replaced"):
        _save(checkpoint, tmp_path, overwrite=True)
    assert (tmp_path / "diary.txt").exists()


def test_no_tokenizer_there(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidInputError, match=r"holds no tokenizer file; looked for tokenizer\.json"):
        _save(checkpoint, tmp_path / "out", tokenizer_folder=tmp_path)


def test_a_model_without_a_format(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no checkpoint format to save a Linear"):
        save_checkpoint(nn.Linear(1, 1), tmp_path / "x", tokenizer_folder=None, embedding=None, dtype=torch.float32)
