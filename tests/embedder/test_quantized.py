"""`thalweg.load(quantize=…)` from end to end: the shipped model, the plan, saving, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import thalweg
from tests.checkpoints.test_memory import _write_large
from tests.cli.conftest import one_thread, thalweg_command  # noqa: F401 - fixtures
from tests.corpus.corpora import write_corpus
from tests.corpus.tiny import make_text
from thalweg.corpus import read_metadata
from thalweg.models.quantized import QuantizedLinear

TEXTS = [
    "The river rose overnight and took the bridge.",
    "The bank left interest rates alone.",
    'Whitley\'s attorney called the ruling "a huge victory."',
    "Several people are sitting around a fire at night.",
    "A woman is riding a horse along a perimeter.",
    "x",
    *(make_text(n, seed=n) for n in (5, 20, 60, 150, 400)),
]


@pytest.fixture(scope="module")
def exact() -> thalweg.Embedder:
    return thalweg.load()


@pytest.fixture(scope="module")
def int8() -> thalweg.Embedder:
    return thalweg.load(quantize="int8")


@pytest.mark.slow
def test_vectors_of_the_shipped_model(exact: thalweg.Embedder, int8: thalweg.Embedder) -> None:
    assert (int8.quantization, exact.quantization) == ("int8", None)
    cosines = (exact.encode(TEXTS) * int8.encode(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.999, cosines
    cosines = (exact.encode(TEXTS) * thalweg.load(quantize="int4").encode(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.97, cosines


def test_vectors_do_not_depend_on_how_the_work_is_cut_up(int8: thalweg.Embedder) -> None:
    """Sums in another order round to another level of 127 now and then: 2e-3 of a vector of length 1, no more."""
    whole = int8.encode(TEXTS)
    pieces = int8.encode(TEXTS[::-1], max_tokens_per_step=50, vertical_chunk_size=7)[::-1]
    assert np.linalg.norm(pieces - whole, axis=1).max() < 2e-3
    alone = np.stack([int8.encode(text) for text in TEXTS])
    assert np.linalg.norm(alone - whole, axis=1).max() < 2e-3


def test_the_plan_counts_the_bytes_of_quantised_weights(exact: thalweg.Embedder, int8: thalweg.Embedder) -> None:
    linears = [m for m in int8.model.modules() if isinstance(m, QuantizedLinear)]
    assert len(linears) == 4
    numbers = sum(m.in_features * m.out_features for m in linears)
    saved = exact.plan_memory().weights - int8.plan_memory().weights
    assert 2.8 * numbers < saved < 3 * numbers


def test_a_quantised_model_is_not_saved(int8: thalweg.Embedder, tmp_path: Path) -> None:
    with pytest.raises(thalweg.InvalidInputError, match="int8 weights cannot be saved; load it without quantize"):
        int8.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_only_on_the_cpu() -> None:
    with pytest.raises(thalweg.InvalidInputError, match="quantize='int8' runs on the CPU only, not on cuda"):
        thalweg.load(quantize="int8", device="cuda")
    with pytest.raises(thalweg.InvalidInputError, match="one of int8, int4, got 'q8_0'"):
        thalweg.load(quantize="q8_0")  # type: ignore[arg-type]


_PEAK = """
import sys, thalweg
from thalweg.checkpoints import load_checkpoint
from thalweg.models.quantized import weight_bytes

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

load_checkpoint(sys.argv[1], quantize="int8")
load_checkpoint(sys.argv[2], quantize="int8")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
model = load_checkpoint(sys.argv[2], quantize=sys.argv[3]).model
print(status("VmHWM") - before, weight_bytes(model))
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_quantises_layer_by_layer(tmp_path: Path) -> None:
    """A checkpoint of 100 MB in float16, 200 in float32: the peak is what is kept, the file's pages in use, and what
    the allocator holds back: 40 to 70 MB were seen."""
    _write_large(tmp_path, torch.float16, "model.safetensors")
    shipped = str(thalweg.load().folder)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, shipped, str(tmp_path), "int8"], capture_output=True, text=True, check=True
    )
    grown, weights = (int(number) for number in done.stdout.split())
    assert 50e6 < weights < 75e6
    assert grown <= weights + 90e6


@pytest.mark.slow
def test_the_command_line(thalweg_command: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811 - a fixture
    docs, out = write_corpus(tmp_path / "docs", long_words=300), tmp_path / "out.parquet"
    assert thalweg_command("embed", docs, "-o", out, "--quantize", "int8", "-q").exit_code == 3
    assert read_metadata(out).run["settings"]["quantize"] == "int8"
    found = thalweg_command("search", out, "river", "--quantize", "int8", "--json", "-k", 2)
    assert len(json.loads(found.stdout)) == 2
    told = thalweg_command("embed", docs, "-o", out, "--resume", "-q")
    assert "quantize was 'int8', is None" in " ".join(told.stderr.split())
    told = thalweg_command("info", "--quantize", "int8")
    assert "int8: weights and rows, products in" in told.stdout
    assert "13,685,192" in told.stdout
    told = thalweg_command("info", "--quantize", "int8", "--device", "meta")
    assert told.exit_code == 1
    assert "runs on the CPU only" in " ".join(told.stderr.split())
