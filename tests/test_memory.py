"""The memory plan against the real peak of a process, and constant memory at any length."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.tiny import write_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's peak figure is read from /proc")

ROOT = Path(__file__).parent.parent

RUN = """
import json, sys
from pathlib import Path
import numpy as np, torch
from thalweg.engine import Engine, Ids, Schedule
from thalweg.memory import plan_memory
from thalweg.models.mamba2 import Mamba2, Mamba2Config

torch.set_num_threads(1)
runs, bounds, dtype = json.loads(sys.argv[1]), Schedule(**json.loads(sys.argv[2])), getattr(torch, sys.argv[3])
config = Mamba2Config(vocab_size=4000, d_model=512, n_layers=6, n_heads=16, head_dim=64, d_state=128)


def memory(name):
    # Not ru_maxrss: a new process inherits the peak of the one that started it.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# What any process takes: the interpreter, the libraries and their buffers, after a first run of a tiny model.
tiny = Mamba2(Mamba2Config(vocab_size=10, d_model=64, n_layers=1, n_heads=8, head_dim=16, d_state=16))
tiny.requires_grad_(False)
for _ in range(2):
    list(Engine(tiny.to(dtype), "last").run([Ids(np.arange(5000) % 10)]))
torch.ones(300, 300, dtype=dtype) @ torch.ones(300, 300, dtype=dtype)
before = memory("VmRSS")
model = Mamba2(config).to(dtype).eval().requires_grad_(False)
plan = plan_memory(model, bounds, "last")
peaks = []
for lengths in runs:
    for _ in Engine(model, "last", bounds).run(Ids(np.arange(n) % 4000) for n in lengths):
        pass
    peaks.append(memory("VmHWM") - before)
found = {"plan": plan.total, "peaks": peaks, "weights": plan.weights}
print(json.dumps(found | {"states": plan.states, "activations": plan.activations}))
"""


def measure(runs: list[list[int]], bounds: dict[str, int], dtype: str) -> dict[str, Any]:
    """The plan, and the peak so far after each of several runs in one process."""
    command = [sys.executable, "-c", RUN, json.dumps(runs), json.dumps(bounds), dtype]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def in_one_of_three(attempt: Callable[[], bool]) -> bool:
    """Whether one of three processes agrees. The allocator's free blocks lie differently in each, which moves a peak by
    up to a tenth; what really grows, or is really planned wrong, does so in all of them."""
    return any(attempt() for _ in range(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("bounds", "lengths"),
    [
        ({"max_tokens_per_step": 2048, "vertical_chunk_size": 2048, "max_in_flight": 1}, [5000]),
        ({"max_tokens_per_step": 8192, "vertical_chunk_size": 4096, "max_in_flight": 8}, [9000] * 8),
        ({"max_tokens_per_step": 4096, "vertical_chunk_size": 256, "max_in_flight": 16}, [600] * 20),
        ({"max_tokens_per_step": 16384, "vertical_chunk_size": 512, "max_in_flight": 2}, [200] * 170),
    ],
    ids=["one document", "activations", "states", "short texts"],
)
def test_the_plan_is_within_15_percent_of_the_real_peak(dtype: str, bounds: dict[str, int], lengths: list[int]) -> None:
    """Runs that fill their steps, each with another part of the plan the largest."""

    def is_near() -> bool:
        found = measure([lengths], bounds, dtype)
        return bool(0.85 * found["plan"] <= found["peaks"][0] <= 1.15 * found["plan"])

    assert in_one_of_three(is_near)


def test_the_plan_and_the_peak_are_the_same_at_any_length() -> None:
    bounds = {"max_tokens_per_step": 1024, "vertical_chunk_size": 512, "max_in_flight": 1}

    # In one process, since two start with the allocator in different states; the first run fills its free lists.
    def is_same() -> bool:
        _, short, long = measure([[16_000], [16_000], [64_000]], bounds, "float32")["peaks"]
        return bool(long <= 1.02 * short)

    assert in_one_of_three(is_same)


STREAM = """
import sys, thalweg
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.corpus.tiny import make_text

model = thalweg.load(sys.argv[2])
piece = make_text(5000)
sections = int(sys.argv[4]) or None
for _ in model.encode_stream([(piece for _ in range(int(sys.argv[3])))], section_size=sections):
    pass
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.parametrize("section_size", [0, 100], ids=["whole", "sections"])
def test_a_streamed_text_of_any_length_takes_the_same_memory(tmp_path: Path, section_size: int) -> None:
    """From a generator of text to vectors, everything in between included: 20 times the text, the same peak."""
    model = write_model(tmp_path / "model")

    def peak(pieces: int) -> int:
        command = [sys.executable, "-c", STREAM, str(ROOT), str(model), str(pieces), str(section_size)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    assert peak(40) <= 1.02 * peak(2)
