"""Broken, hostile and contradictory weight files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from thalweg.checkpoints import load_checkpoint
from thalweg.checkpoints.files import choose_weights, open_tensors, scan, stream
from thalweg.errors import CheckpointError

from .conftest import assert_same_weights
from .formats import tiny_config, write_transformers


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], ()),
        (["config.json", "model.fp16.safetensors", "adapter_model.safetensors"], ()),
        (["pytorch_model.bin", "model.safetensors"], ("model.safetensors",)),
        (["consolidated.safetensors", "pytorch_model.bin"], ("consolidated.safetensors",)),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "consolidated.safetensors"],
            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        ),
        (
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
            ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"),
        ),
    ],
)
def test_one_format_is_chosen(names: list[str], chosen: tuple[str, ...]) -> None:
    assert choose_weights(names) == chosen


def test_no_weights(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds no weights: looked for model\.safetensors.*weights\.pt"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated(tmp_path: Path, bin: bool, kept: float) -> None:
    write_transformers(tmp_path, tiny_config(), bin=bin)
    file = tmp_path / ("pytorch_model.bin" if bin else "model.safetensors")
    os.truncate(file, int(kept if kept >= 1 else kept * file.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"{file.name} is truncated or corrupt .*download it again"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_not_a_tensor_file(tmp_path: Path, name: str) -> None:
    write_transformers(tmp_path, tiny_config())
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"<html>404 not found</html>" * 10)
    with pytest.raises(CheckpointError, match=f"{name} is truncated or corrupt"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        scan(tmp_path)


class _Runs:
    """Unpickling this would create a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    write_transformers(tmp_path, tiny_config(), bin=True)
    proof, file = tmp_path / "was-run", tmp_path / "pytorch_model.bin"
    content = {"norm_f.weight": torch.zeros(32), "payload": _Runs(proof)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"Python objects besides tensors \(.*mkdir\).*safetensors"):
        load_checkpoint(tmp_path)
    assert not proof.exists()


def test_a_bare_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    proof, file = tmp_path / "was-run", tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(_Runs(proof)))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        scan(tmp_path)
    assert not proof.exists()


def test_bin_from_before_zip_archives(tmp_path: Path) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), bin=True)
    file = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert_same_weights(load_checkpoint(tmp_path), oracle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"norm_f.weight": torch.zeros(32)}}, "'state_dict' is a dict"),
        ({"norm_f.weight": torch.zeros(32), "epoch": 3}, "'epoch' is a int"),
        ([torch.zeros(32)], "'the file' is a list"),
    ],
    ids=["nested", "number", "list"],
)
def test_bin_with_more_than_tensors(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        scan(tmp_path)


def test_transposed_tensor_in_bin(tmp_path: Path) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), bin=True)
    file = tmp_path / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    name = "backbone.layers.0.mixer.out_proj.weight"
    tensors[name] = tensors[name].T.contiguous().T
    torch.save(tensors, file)
    checkpoint = load_checkpoint(tmp_path)
    assert_same_weights(checkpoint, oracle)
    assert checkpoint.model.get_parameter("layers.0.mixer.out_proj.weight").is_contiguous()


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_missing_shard(tmp_path: Path, bin: bool) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True, bin=bin)
    shard = next(tmp_path.glob("*-00002-of-00002.*"))
    shard.unlink()
    with pytest.raises(
        CheckpointError, match=rf"index\.json does not match.*missing {shard.name}; not in the index none"
    ):
        load_checkpoint(tmp_path)


def test_shard_that_the_index_does_not_know(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True)
    save_file({"x": torch.zeros(1)}, tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"missing none; not in the index model-00003-of-00003\.safetensors"):
        load_checkpoint(tmp_path)


def _edit_index(folder: Path, name: str, shard: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = shard
    index["weight_map"] = {key: value for key, value in index["weight_map"].items() if value}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "shard", "message"),
    [
        (
            "backbone.norm_f.weight",
            "model-00001-of-00002.safetensors",
            r"norm_f\.weight \(index: model-00001.*file: model-00002",
        ),
        ("backbone.norm_f.weight", None, r"norm_f\.weight \(index: None, file: model-00002"),
        ("ghost", "model-00001-of-00002.safetensors", r"ghost \(index: model-00001.*, file: None\)"),
        ("ghost", "../elsewhere.safetensors", r"missing \.\./elsewhere\.safetensors"),
    ],
)
def test_index_that_disagrees(tmp_path: Path, name: str, shard: str | None, message: str) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True)
    _edit_index(tmp_path, name, shard)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": []}', "[]", "{", '{"weight_map": {"a": 1}}'])
def test_broken_index(tmp_path: Path, content: str) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_checkpoint(tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config(), sharded=True)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file({**load_file(second), "backbone.embeddings.weight": torch.zeros(96, 32)}, second)
    with pytest.raises(
        CheckpointError, match=r"backbone\.embeddings\.weight is stored twice: in .*00001.* and in .*00002"
    ):
        load_checkpoint(tmp_path)


def test_shards_without_an_index(tmp_path: Path) -> None:
    oracle = write_transformers(tmp_path, tiny_config(), sharded=True)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same_weights(load_checkpoint(tmp_path), oracle)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shards are missing.*model-00002-of-00002"):
        load_checkpoint(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold no tensor"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_same_dtype_stays_in_the_map(tmp_path: Path, bin: bool) -> None:
    """Writing to a loaded weight changes no file, and a weight outlives the file's name."""
    write_transformers(tmp_path, tiny_config(), bin=bin)
    file = tmp_path / ("pytorch_model.bin" if bin else "model.safetensors")
    before = file.read_bytes()
    checkpoint = load_checkpoint(tmp_path)
    weight = checkpoint.model.get_parameter("norm.weight")
    kept = weight.clone()
    weight.zero_()
    assert file.read_bytes() == before
    reloaded = load_checkpoint(tmp_path)
    file.unlink()
    assert torch.equal(reloaded.model.get_parameter("norm.weight"), kept)


def test_stream_remaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the budget, every wanted tensor comes once, in the file's order."""
    write_transformers(tmp_path, tiny_config())
    file = tmp_path / "model.safetensors"
    everything = open_tensors(file)
    wanted = [name for name in everything if "norm" in name]
    for budget in (1, 300, 2**30):
        for bound in ("LEAST_MAPPED", "MOST_MAPPED"):
            monkeypatch.setattr(f"thalweg.checkpoints.files.{bound}", budget)
        streamed = list(stream(file, wanted))
        assert [name for name, _ in streamed] == wanted
        assert all(torch.equal(tensor, everything[name]) for name, tensor in streamed)


def test_a_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        open_tensors(tmp_path / "model.safetensors")
