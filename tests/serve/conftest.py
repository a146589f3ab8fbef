"""A tiny model, and a server with it that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import thalweg
from tests.cli.conftest import thalweg_command as thalweg_command
from tests.corpus.tiny import write_model
from tests.serve.running import Running, running

PROMPT = "question: what does the river do when the snow of the mountains melts in the spring? "


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> thalweg.Embedder:
    folder = write_model(tmp_path_factory.mktemp("served") / "tiny", prompts={"query": PROMPT})
    return thalweg.load(folder, special_tokens="text")


@pytest.fixture(scope="session")
def last_model(tmp_path_factory: pytest.TempPathFactory) -> thalweg.Embedder:
    folder = write_model(tmp_path_factory.mktemp("served") / "last", pooling="last", normalize=False, seed=1)
    return thalweg.load(folder, special_tokens="text")


@pytest.fixture(scope="session")
def served(model: thalweg.Embedder, last_model: thalweg.Embedder) -> Iterator[Running]:
    """Without keys, with two models."""
    with running({"tiny": model, "last": last_model}) as server:
        yield server
