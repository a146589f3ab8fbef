"""Names: folders as they are, hub ids through the cache, and what is said when neither works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from thalweg.checkpoints import load_checkpoint, resolve
from thalweg.errors import CheckpointError, InvalidInputError

from .formats import tiny_config, write_tokenizer, write_transformers

MAIN, TAGGED = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with org/model at two commits: main (one file) and the tag v1 (.bin)."""
    repository = tmp_path / "cache" / "models--org--model"
    write_transformers(repository / "snapshots" / MAIN, tiny_config())
    write_transformers(repository / "snapshots" / TAGGED, tiny_config(), bin=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    (repository / "refs" / "v1").write_text(TAGGED)
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


class FakeHub:
    """The hub with one repository; records what is downloaded of it."""

    def __init__(self, names: list[str], error: Callable[[], Exception] | None = None) -> None:
        self.names = names
        self.error = error
        self.downloaded: set[str] | None = None
        self.token: object = None

    def install(self, monkeypatch: pytest.MonkeyPatch, cached: Path | None = None) -> None:
        def list_repo_files(api: Any, name: str, revision: str | None = None) -> list[str]:
            assert name == "org/model"
            self.token = api.token
            if self.error:
                raise self.error()
            return self.names

        def snapshot_download(name: str, *, local_files_only: bool, allow_patterns: list[str], **rest: Any) -> str:
            if local_files_only:
                if cached is None:
                    raise huggingface_hub.errors.LocalEntryNotFoundError("nothing cached")
                return str(cached)
            self.downloaded = set(allow_patterns)
            assert rest["token"] == self.token
            return "downloaded"

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def _http_error(kind: type[Exception]) -> Callable[[], Exception]:
    """The hub's exceptions want a response of whichever HTTP library this release uses; none is looked at here."""

    def make() -> Exception:
        error = kind.__new__(kind)
        error.args = (kind.__name__,)
        return error

    return make


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~") == tmp_path
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == Path("org/model")  # before the hub's


def test_a_revision_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="revision='main' has no meaning for the local folder"):
        resolve(tmp_path, revision="main")


@pytest.mark.parametrize(
    "name", ["./org/model", "/org/model", "model", "org/model/deeper", "~/absent", "", "a\\b", "-/x"]
)
def test_neither_a_folder_nor_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"there is no folder .*and it is not a hub id"):
        resolve(name)


def test_a_path_object_is_never_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder 'org/model'"):
        resolve(Path("org/model"))


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("revision", "commit"), [(None, MAIN), ("main", MAIN), ("v1", TAGGED), (TAGGED, TAGGED)])
def test_offline_from_the_cache(cache: Path, revision: str | None, commit: str) -> None:
    folder = resolve("org/model", revision=revision, cache_dir=cache)
    assert folder == cache / "models--org--model" / "snapshots" / commit
    assert load_checkpoint(folder).format == "mamba2/transformers"


def test_local_files_only(cache: Path) -> None:
    assert resolve("org/model", cache_dir=cache, local_files_only=True).name == MAIN
    with pytest.raises(CheckpointError, match=r"'org/other' is neither.*local_files_only=True"):
        resolve("org/other", cache_dir=cache, local_files_only=True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/other", None, "'org/other' is neither a local folder nor in the hub's cache, and .*HF_HUB_OFFLINE"),
        ("org/model", "v2", "'org/model' is neither a local folder nor in the hub's cache at revision 'v2'"),
        ("org/mo--del", None, "'org/mo--del' is neither"),
    ],
)
def test_offline_and_not_cached(cache: Path, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(name, revision=revision, cache_dir=cache)


@pytest.mark.usefixtures("offline")
def test_a_cached_snapshot_without_weights(cache: Path) -> None:
    (cache / "models--org--model" / "snapshots" / MAIN / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cached snapshot of 'org/model' .* holds no weights.*HF_HUB_OFFLINE"):
        resolve("org/model", cache_dir=cache)


@pytest.mark.subprocess
def test_offline_by_the_environment(cache: Path, tmp_path: Path) -> None:
    """The variable is read when huggingface_hub is imported, hence a process of its own."""
    shutil.copytree(cache, tmp_path / "home" / "hub")
    program = "from thalweg.checkpoints import resolve; print(resolve('org/model', revision='v1').name)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == TAGGED


SMALL = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            # Codestral Mamba: both of its formats are safetensors, 15 GB each.
            ["consolidated.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "params.json"]),
    ],
)
def test_what_is_downloaded(monkeypatch: pytest.MonkeyPatch, weights: list[str], wanted: list[str]) -> None:
    """One weight format, the small files, and no code."""
    unwanted = ["README.md", "modeling_custom.py", "onnx/model.onnx", "openvino/model.bin", "figure.png"]
    hub = FakeHub([*weights, *SMALL, *unwanted])
    hub.install(monkeypatch)
    assert resolve("org/model", token="secret") == Path("downloaded")
    assert hub.downloaded == {*wanted, *SMALL}
    assert hub.token == "secret"


def test_one_pth_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """RWKV repositories hold many models, each a file."""
    hub = FakeHub(["a.pth", "old/b.pth", "README.md", "rwkv_vocab_v20230424.txt"])
    hub.install(monkeypatch)
    assert resolve("org/model/old/b.pth") == Path("downloaded/old/b.pth")
    assert hub.downloaded == {"old/b.pth", "rwkv_vocab_v20230424.txt"}
    assert resolve("org/model") == Path("downloaded")
    assert "a.pth" in hub.downloaded
    with pytest.raises(
        CheckpointError, match=r"'org/model' holds no c\.pth; name one of org/model/a\.pth, org/model/old"
    ):
        resolve("org/model/c.pth")
    FakeHub(["a.pth", "b.pth"]).install(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no weights in a known format .*; name one of org/model/a\.pth, org/m"):
        resolve("org/model")


def test_a_repository_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(["model.gguf"]).install(monkeypatch)
    with pytest.raises(CheckpointError, match="'org/model' holds no weights in a known format"):
        resolve("org/model")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            _http_error(GatedRepoError),
            r"it is gated: accept its terms on the hub page of org/model and pass token",
        ),
        (_http_error(RepositoryNotFoundError), r"knows no such public model; check the spelling.*token"),
        (_http_error(RevisionNotFoundError), "'org/model' has no branch, tag or commit 'v9'"),
        (lambda: ConnectionError("no route"), "the hub could not be used: ConnectionError: no route"),
    ],
)
def test_errors_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], message: str) -> None:
    FakeHub([], error).install(monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        resolve("org/model", revision="v9")


def test_the_cache_serves_when_the_network_is_away(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = cache / "models--org--model" / "snapshots" / MAIN
    FakeHub([], lambda: ConnectionError("no route")).install(monkeypatch, cached)
    assert resolve("org/model") == cached


def test_a_download_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answered, so the cache may be half new: no falling back to it."""
    FakeHub(["model.safetensors"]).install(monkeypatch)

    def fail(*_: object, **__: object) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"could not download 'org/model'.*No space left"):
        resolve("org/model")


def test_write_tokenizer_is_among_the_small_files(tmp_path: Path) -> None:
    from thalweg.checkpoints.tokens import TOKENIZER_FILES

    write_tokenizer(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= set(TOKENIZER_FILES)
