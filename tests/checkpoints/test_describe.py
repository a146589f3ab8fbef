"""What a model is, before any weight is read: the same answers as after loading it, for few bytes of its weights."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import thalweg
from thalweg.assets import model_folder
from thalweg.checkpoints import describe_checkpoint, load_checkpoint
from thalweg.embedder.embedder import Embedder
from thalweg.engine.memory_plan import plan_memory
from thalweg.engine.schedule import Schedule
from thalweg.errors import CheckpointError
from thalweg.models.quantized import weight_bytes, weight_count

from .formats import tiny_config, write_tokenizer, write_transformers
from .registry import CHECKPOINTS


@pytest.mark.parametrize("dtype", [None, "auto", torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_as_load_checkpoint(name: str, dtype: Any, tmp_path: Path) -> None:
    CHECKPOINTS[name][1](tmp_path)
    described, loaded = describe_checkpoint(tmp_path, dtype=dtype), load_checkpoint(tmp_path, dtype=dtype)
    for field in ("config", "family", "format", "weights_dtype", "eos_token_id", "embedding", "folder", "source"):
        assert getattr(described, field) == getattr(loaded, field)
    ours, theirs = (dict(c.model.state_dict()) for c in (described, loaded))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    assert weight_bytes(described.model) == weight_bytes(loaded.model)
    plans = [plan_memory(c.model, Schedule(), "last") for c in (described, loaded)]  # type: ignore[arg-type]
    assert plans[0] == plans[1]
    assert not any(parameter.requires_grad for parameter in described.model.parameters())


def test_it_takes_no_memory_and_gives_no_vectors(tmp_path: Path) -> None:
    write_transformers(tmp_path, tiny_config())
    write_tokenizer(tmp_path)
    checkpoint = describe_checkpoint(tmp_path)
    assert sum(p.untyped_storage().nbytes() for p in checkpoint.model.parameters()) < 1000
    embedder = Embedder(checkpoint, "name")
    assert (embedder.dimension, embedder.family, weight_count(embedder.model)) == (
        32,
        "mamba2",
        weight_count(thalweg.load(tmp_path).model),
    )
    with contextlib.suppress(thalweg.ThalwegError):  # also an answer
        assert np.isnan(embedder.encode(["the river runs"])).all()


class _Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a repository of one commit needs; counts the bytes that it sends of each file."""

    root: Path
    sent: dict[str, int]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/model"):
            files = {p.relative_to(self.root).as_posix(): p for p in self.root.rglob("*") if p.is_file()}
            siblings = [{"rfilename": name} for name in files]
            about: Any = {"id": "org/model", "sha": "a" * 40, "siblings": siblings, "private": False, "tags": []}
            if "/tree/" in path:
                about = [{"type": "file", "oid": "b" * 40, "size": 1, "path": name} for name in files]
            return self._answer(json.dumps(about).encode(), "about")
        file = self.root / path.partition("/resolve/")[2].partition("/")[2]  # …/resolve/REVISION/FILE
        if not file.is_file():
            self.send_error(404)
            return None
        return self._answer(file.read_bytes(), file.relative_to(self.root).as_posix())

    def _answer(self, content: bytes, name: str) -> None:
        whole, wanted = len(content), self.headers.get("Range") or self.headers.get("range")
        if wanted:
            first, last = (int(bound or whole - 1) for bound in wanted.removeprefix("bytes=").split("-"))
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{min(last, whole - 1)}/{whole}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{abs(hash(name)):040x}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.sent[name] = self.sent.get(name, 0) + len(content)
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, dict[str, int], dict[str, str]]]:
    """A folder that is served as org/model, what was sent of each file, and the environment that leads there."""
    root, sent = tmp_path / "served", dict[str, int]()
    root.mkdir()
    handler = type("Handler", (_Hub,), {"root": root, "sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    yield root, sent, environment
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
from thalweg.checkpoints import describe_checkpoint
from thalweg.models.quantized import weight_count
found = describe_checkpoint("org/model")
print(found.format, found.weights_dtype, weight_count(found.model), found.config.n_layers, found.eos_token_id)
"""


def describe(environment: dict[str, str]) -> tuple[str, str]:
    """What PROGRAM prints in a process whose hub is another, and what goes wrong there."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment}, timeout=120)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
def test_of_the_hub_only_headers_are_fetched(hub: Any, sharded: bool) -> None:
    root, sent, environment = hub
    write_transformers(root, tiny_config(vocab_size=20_000), sharded=sharded, dtype=torch.bfloat16)
    write_tokenizer(root)
    said, errors = describe(environment)
    count = weight_count(load_checkpoint(root).model)
    assert said == f"mamba2/transformers torch.bfloat16 {count} 2 2", errors
    weights = {name: n for name, n in sent.items() if name.endswith(".safetensors")}
    assert len(weights) == 1 + sharded
    assert max(weights.values()) <= 100_001  # what huggingface_hub asks for at first
    assert max((root / name).stat().st_size for name in weights) > 1_000_000
    assert "tokenizer.json" in sent


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_info_of_a_hub_model_fetches_no_weights(hub: Any, tmp_path: Path, quantize: str | None) -> None:
    """It says the same of it as of the same folder here, but for the fingerprint. The model has a lexicon."""
    root, sent, environment = hub
    shutil.copytree(model_folder(), root, dirs_exist_ok=True)
    options = ["--quantize", quantize] if quantize else []

    def info(model: str) -> dict[str, str]:
        command = [sys.executable, "-m", "thalweg.cli", "info", model, *options]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment}, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = (re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines() if line.strip())
        return dict(lines)

    here, there = info(str(root)), info("org/model")
    assert {name for name in here if here[name] != there[name]} == {"model", "fingerprint"}
    assert there["fingerprint"] == "known once it is downloaded"
    loaded = thalweg.load(root, device="cpu", quantize=quantize)
    assert here["fingerprint"] == loaded.fingerprint
    plan = loaded.plan_memory()
    assert here["weights"] == f"{plan.weights / 2**20:.1f} MiB"
    assert here["activations"] == f"{plan.activations / 2**20:.1f} MiB"
    assert sent["model.safetensors"] <= 100_001


def test_of_pickles_only_the_config_is_read(hub: Any) -> None:
    root, sent, environment = hub
    write_transformers(root, tiny_config(), bin=True)
    write_tokenizer(root)
    said, errors = describe(environment)
    count = weight_count(load_checkpoint(root).model)
    assert said == f"mamba2/transformers None {count} 2 2", errors
    assert "pytorch_model.bin" not in sent


def test_a_header_that_lies_is_refused(hub: Any) -> None:
    root, _, environment = hub
    write_transformers(root, tiny_config(), extra={"num_hidden_layers": 3})
    said, errors = describe(environment)
    assert said == ""
    assert "CheckpointError" in errors
    assert "n_layers is 3, but the weight files hold 2 layers" in errors
    (root / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "could not read the header of model.safetensors of 'org/model'" in describe(environment)[1]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        describe_checkpoint(tmp_path / "nothing")
