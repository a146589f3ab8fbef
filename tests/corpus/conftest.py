"""One tiny model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import thalweg

from .tiny import write_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost a tiny model more than it computes, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", prompts={"query": "question: "})


@pytest.fixture(scope="session")
def embedder(model_folder: Path) -> thalweg.Embedder:
    return thalweg.load(model_folder, device="cpu")
