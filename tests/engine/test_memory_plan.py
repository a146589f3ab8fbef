"""The memory plan against the real peak of a process, and constant memory at any length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.tiny import write_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's peak figure is read from /proc")

ROOT = Path(__file__).parent.parent.parent

RUN = """
import ctypes, json, sys
from pathlib import Path
import numpy as np, torch
from thalweg.engine.engine import Engine
from thalweg.engine.sources import Ids
from thalweg.engine.schedule import Schedule
from thalweg.engine.memory_plan import plan_memory
from thalweg.models.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from thalweg.models.mamba import Mamba, MambaConfig
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.models.quantized import quantize_
from thalweg.models.rwkv7 import RWKV7, RWKV7Config
from thalweg.models.xlstm import XLSTM, XLSTMConfig

torch.set_num_threads(1)
family, lengths, bounds, dtype = sys.argv[1], json.loads(sys.argv[2]), Schedule(**json.loads(sys.argv[3])), sys.argv[4]
layers, quantization = int(sys.argv[5]), sys.argv[6]
MODELS = {
    "mamba2": lambda: Mamba2(Mamba2Config(4000, 512, layers, n_heads=16, head_dim=64, d_state=128)),
    "mamba": lambda: Mamba(MambaConfig(4000, 512, layers, d_inner=1024, dt_rank=32)),
    "rwkv7": lambda: RWKV7(RWKV7Config(4000, 512, layers, 64, 512, 2048, rank_w=64, rank_a=64, rank_v=32, rank_g=128)),
    "xlstm": lambda: XLSTM(XLSTMConfig(4000, 512, layers, n_heads=4, d_qk=256, d_v=512, d_ffn=1408)),
    "gated_deltanet": lambda: GatedDeltaNet(GatedDeltaNetConfig(4000, 512, layers, 4, 96, 4, 192, d_mlp=1408)),
}


def memory(name):
    # Not ru_maxrss: a new process inherits the peak of the one that started it.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# What any process takes: the interpreter, the libraries and their buffers, after a first run of a tiny model.
tiny = Mamba2(Mamba2Config(vocab_size=10, d_model=64, n_layers=1, n_heads=8, head_dim=16, d_state=16))
tiny.requires_grad_(False)
for _ in range(2):
    list(Engine(tiny.to(getattr(torch, dtype)), "last").run([Ids(np.arange(5000) % 10)]))
for kind in ("float32", dtype):  # matrix products keep up to 30 MiB a thread, more for larger ones
    square = torch.ones(2048, 2048, dtype=getattr(torch, kind))
    square @ square
del square
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
torch.set_default_dtype(getattr(torch, dtype))  # never in float32 first: that memory would serve the run
model = MODELS[family]().to(getattr(torch, dtype)).eval().requires_grad_(False)
torch.set_default_dtype(torch.float32)
if quantization:  # layer by layer, which takes less than the run
    quantize_(model, quantization)
    ctypes.CDLL(None).malloc_trim(0)
plan = plan_memory(model, bounds, "last")
for _ in Engine(model, "last", bounds).run(Ids(np.arange(n) % 4000) for n in lengths):
    pass
found = {"plan": plan.total, "peak": memory("VmHWM") - before, "whole": memory("VmHWM"), "weights": plan.weights}
found |= {"states": plan.states, "activations": plan.activations, "room": plan.room, "fixed": plan.fixed_thresholds}
print(json.dumps(found))
"""

ALLOCATORS = {"fixed": {"THALWEG_MALLOC": "1"}, "as found": {}, "no holes": {"MALLOC_MMAP_THRESHOLD_": "65536"}}
"""Of a process: as the command line has it; as a program has it that imports thalweg; and one in which every larger
block is a mapping of its own, which leaves no holes."""


def measure(
    family: str,
    lengths: list[int],
    bounds: dict[str, int],
    allocator: str,
    *,
    dtype: str = "float32",
    layers: int = 4,
    quantization: str = "",
) -> dict[str, Any]:
    """The plan and the peak of one process."""
    model = [family, json.dumps(lengths), json.dumps(bounds), dtype, str(layers), quantization]
    others = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    printed = subprocess.run(
        [sys.executable, "-c", RUN, *model],
        check=True,
        capture_output=True,
        text=True,
        env=others | ALLOCATORS[allocator],
    ).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert result["fixed"] == (allocator == "fixed")
    return result


FAMILIES = ["mamba2", "mamba", "rwkv7", "xlstm", "gated_deltanet"]


LIBRARIES = 8 << 20
"""Buffers that matrix products of other shapes may add to those that are there before the run."""

ONE_DOCUMENT = ({"max_tokens_per_step": 2048, "vertical_chunk_size": 2048, "max_in_flight": 1}, [5000], 4)
FULL_STEPS = {
    "one document": (*ONE_DOCUMENT[:2], 6),
    "activations": ({"max_tokens_per_step": 8192, "vertical_chunk_size": 1024, "max_in_flight": 8}, [3000] * 8, 2),
    "states": ({"max_tokens_per_step": 4096, "vertical_chunk_size": 256, "max_in_flight": 16}, [800] * 24, 6),
    "short texts": ({"max_tokens_per_step": 16384, "vertical_chunk_size": 512, "max_in_flight": 1}, [512] * 64, 2),
}
"""Bounds, lengths and layers of runs that fill their steps, each with another part of the plan the largest."""
RUNS = [*(("mamba2", *run) for run in FULL_STEPS.values()), *((family, *ONE_DOCUMENT) for family in FAMILIES[1:])]
NAMES = [*FULL_STEPS, *FAMILIES[1:]]


def assert_right(family: str, lengths: list[int], bounds: dict[str, int], allocator: str, **model: Any) -> None:
    """With fixed thresholds at once. As the allocator is found the plan's room is an average: peaks of equal processes
    differ by up to a quarter, and one that fits is looked for. A plan that is wrong is wrong every time."""
    for _ in range(1 if allocator == "fixed" else 5):
        found = measure(family, lengths, bounds, allocator, **model)
        if found["plan"] == pytest.approx(found["peak"], abs=0.15 * found["peak"] + LIBRARIES):
            return
    raise AssertionError(found)


@pytest.mark.parametrize("allocator", ["fixed", "as found"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "bounds", "lengths", "layers"), RUNS, ids=NAMES)
def test_the_plan_is_within_15_percent_of_the_real_peak(
    family: str, bounds: dict[str, int], lengths: list[int], layers: int, dtype: str, allocator: str
) -> None:
    assert_right(family, lengths, bounds, allocator, dtype=dtype, layers=layers)


@pytest.mark.parametrize("allocator", ["fixed", "as found"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_plan_of_a_quantised_model(quantization: str, allocator: str) -> None:
    bounds, lengths, layers = ONE_DOCUMENT
    assert_right("mamba2", lengths, bounds, allocator, layers=layers, quantization=quantization)


@pytest.mark.parametrize(("family", "bounds", "lengths", "layers"), RUNS, ids=NAMES)
def test_without_holes_the_plan_is_never_exceeded(
    family: str, bounds: dict[str, int], lengths: list[int], layers: int
) -> None:
    """The same at every run."""
    found = measure(family, lengths, bounds, "no holes", layers=layers)
    counted = found["plan"] - found["room"]
    assert 0.8 * counted <= found["peak"] <= counted + LIBRARIES, found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peak_is_the_same_at_any_length(family: str) -> None:
    """Two processes, four times the text. Were the past kept, it would show: the vectors of 12,000 tokens are 24 MB,
    7 % of the peak. Without the allocator's holes, which differ by a few percent between processes;
    `benchmarks/length.py` has them in."""
    bounds = {"max_tokens_per_step": 1024, "vertical_chunk_size": 512, "max_in_flight": 1}

    def whole(n: int) -> int:
        return int(measure(family, [n], bounds, "no holes", layers=2)["whole"])

    short = whole(3_000)
    # One run of 40 was 1 % above all others. A past that is kept is there every time.
    assert any(whole(12_000) <= 1.01 * short for _ in range(2)), short


STREAM = """
import sys, thalweg
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.corpus.tiny import make_text

model = thalweg.load(sys.argv[2])
piece = make_text(5000)
sections = eval(sys.argv[4], {"Sections": thalweg.Sections})
for _ in model.encode_stream([(piece for _ in range(int(sys.argv[3])))], sections=sections):
    pass
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.parametrize(
    "sections",
    [
        "None",
        "Sections(every=100)",
        "Sections('paragraph', look_ahead=300)",
        "Sections('sentence', mode='prefix')",
        "Sections('paragraph', mode='isolated')",
        "Sections([], mode='isolated')",
    ],
)
def test_a_streamed_text_of_any_length_takes_the_same_memory(tmp_path: Path, sections: str) -> None:
    """From a generator of text to vectors, everything in between included: 20 times the text, the same peak."""
    model = write_model(tmp_path / "model")

    def peak(pieces: int) -> int:
        command = [sys.executable, "-c", STREAM, str(ROOT), str(model), str(pieces), sections]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    assert peak(40) <= 1.02 * peak(2)
