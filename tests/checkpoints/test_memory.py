"""Weights are never twice in memory: the peak of a fresh process, in which every weight is read, is their size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thalweg.bench.shapes import SHAPES
from thalweg.bench.weights import recurrent_model
from thalweg.checkpoints import save_checkpoint
from thalweg.checkpoints.formats import FORMATS
from thalweg.families import FAMILIES, find_family
from thalweg.models.mamba2 import Mamba2, Mamba2Config

from .formats import tiny_config, write_transformers, write_weights

# The first load of a process imports what torch needs for the meta device; that is not weights. ru_maxrss would start
# from the parent's peak, so the kernel's own high-water mark is reset instead.
_PROGRAM = """
import sys
from thalweg.checkpoints import load_checkpoint

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

load_checkpoint(sys.argv[1])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
model = load_checkpoint(sys.argv[2]).model
for parameter in model.parameters():
    parameter.view(-1)[::64].sum()  # touches every page
print(status("VmHWM") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


def _write_large(folder: Path, dtype: torch.dtype, single: str) -> None:
    """About 200 MB in float32."""
    format = FORMATS[0]
    assert format.write_config is not None
    config = Mamba2Config(1024, d_model=1024, n_layers=8, n_heads=32, head_dim=64, d_state=64)
    with torch.device("meta"):
        shapes = Mamba2(config).state_dict()
    tensors = {}
    for name, tensor in shapes.items():
        tensor_map, stored = format.stored_name(name)
        tensors[stored] = torch.ones(tensor_map.save(tensor).shape, dtype=dtype)
    write_weights(folder, tensors, single)
    (folder / "config.json").write_text(json.dumps(format.write_config(config)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("dtype", "single"),
    [
        (torch.float32, "model.safetensors"),
        (torch.float16, "model.safetensors"),
        (torch.float16, "pytorch_model.bin"),
    ],
    ids=str,
)
def test_peak(tmp_path: Path, dtype: torch.dtype, single: str) -> None:
    """Views of a float32 file, and conversions from a float16 one, which must not keep what they have read."""
    write_transformers(tmp_path / "tiny", tiny_config(), bin=single.endswith("bin"))
    _write_large(tmp_path / "large", dtype, single)
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "tiny"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown, weights = (int(number) for number in done.stdout.split())
    assert 180e6 < weights < 240e6
    assert 0.95 * weights <= grown <= 1.15 * weights


# One process that has imported everything forks another for every way to load: each begins with the same memory.
_RUNS = """
import ctypes, gc, json, os, sys
import numpy as np, torch
from thalweg.checkpoints import load_checkpoint
from thalweg.engine.engine import Engine
from thalweg.engine.memory_plan import plan_memory
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Ids

torch.set_num_threads(1)
tiny, folder, ways = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
bounds = Schedule(max_tokens_per_step=512, vertical_chunk_size=512, max_in_flight=1)

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def embed(checkpoint, n_tokens):
    ids = np.arange(n_tokens) % checkpoint.config.vocab_size
    for _ in Engine(checkpoint.model, "last", bounds).run([Ids(ids)]):
        pass

def measure(dtype, quantize):
    dtype = getattr(torch, dtype)
    embed(load_checkpoint(tiny, dtype=dtype, quantize=quantize), 1200)
    for kind in (torch.float32, dtype):  # matrix products keep buffers of their own
        square = torch.ones(1024, 1024, dtype=kind)
        square @ square
    del square
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    checkpoint = load_checkpoint(folder, dtype=dtype, quantize=quantize)
    plan = plan_memory(checkpoint.model, bounds, "last")
    for parameter in checkpoint.model.parameters():
        parameter.view(-1)[::64].sum()  # touches every page
    embed(checkpoint, 1200)
    return {"plan": plan.total, "weights": plan.weights, "peak": status("VmHWM") - before}

for way in ways:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        print(json.dumps(measure(*way)))
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

_LIBRARIES = 8 << 20
"""What matrix products of other shapes may keep for themselves."""


_WAYS: list[tuple[str, str | None]] = [("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("float32", "int4")]
_CASES = [(family.name, torch.float32, _WAYS) for family in FAMILIES]
_CASES += [(FAMILIES[0].name, torch.bfloat16, [("float32", None), ("float16", None), ("bfloat16", "int4")])]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("family", "stored", "ways"), _CASES, ids=[f"{name}-{dtype}" for name, dtype, _ in _CASES])
def test_from_the_file_to_the_vectors_the_plan_is_not_exceeded(
    tmp_path: Path, family: str, stored: torch.dtype, ways: list[tuple[str, str | None]]
) -> None:
    """Whatever dtype the file has and the weights get. One parameter that was left a view of its file kept all of it in
    memory beside the converted weights, and embeddings were there twice while they were converted."""
    shape = SHAPES[find_family(family).sizes[0].name]
    for name, layers, vocabulary in (("tiny", 1, 64), ("large", 2, 30_000)):
        model = recurrent_model(shape, torch.float32, layers=layers, vocabulary=vocabulary)
        save_checkpoint(model, tmp_path / name, tokenizer_folder=None, embedding=None, dtype=stored)
    command = [sys.executable, "-c", _RUNS, str(tmp_path / "tiny"), str(tmp_path / "large"), json.dumps(ways)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(ways)
    for way, each in zip(ways, found, strict=True):
        mebibytes = {name: n >> 20 for name, n in each.items()}
        assert 0.9 * each["weights"] <= each["peak"] <= 1.15 * each["plan"] + _LIBRARIES, (way, mebibytes)
