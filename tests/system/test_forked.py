"""A process that was forked from one that had computed goes on computing, with an engine of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.tiny import write_model

PROGRAM = """
import os, sys, warnings
import torch, thalweg
warnings.simplefilter("ignore")  # Python's own, that a process with threads forks
torch.set_num_threads(2)
model = thalweg.load(sys.argv[1], device="cpu")
texts = ["the river runs down to the sea " * 300] * 3
before = model.encode(texts)
stream = model.encode_stream(iter([*texts, "a short text"]), section_size=64)  # under way in the parent
next(stream)
for _ in range(4):
    child = os.fork()
    if child == 0:
        again = thalweg.load(sys.argv[1], device="cpu").encode(texts[:1])
        same = abs(model.encode(texts) - before).max() <= 1e-6 and abs(again - before[:1]).max() <= 1e-6
        os._exit(0 if same and torch.get_num_threads() == 1 else 1)
    print(os.waitpid(child, 0)[1])
assert sum(1 for _ in stream) > 10
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_forked_process_computes(tmp_path: Path, backend: str) -> None:
    environment = {**os.environ, "THALWEG_KERNELS": backend, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", PROGRAM, str(write_model(tmp_path / "model"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.split() == ["0"] * 4, done.stderr
    assert done.stderr.count("this process was forked, and PyTorch's threads are gone in it") == 4


HELD = """
import os, threading, warnings
from thalweg.packing import Packing
warnings.simplefilter("ignore")

class Slow(Packing):
    @property
    def lengths(self):
        begun.set()
        done.wait()
        return (3,)
    @lengths.setter
    def lengths(self, value): pass

begun, done = threading.Event(), threading.Event()
thread = threading.Thread(target=lambda: Slow([3]).segment_ids)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    os._exit(0 if Packing([2, 1]).segment_ids.tolist() == [0, 0, 1] else 1)
code = os.waitpid(child, 0)[1]
done.set()
thread.join()
print(code)
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_no_lock_of_another_thread_is_left_in_a_forked_process() -> None:
    """Up to Python 3.11 functools.cached_property holds one lock for all objects while it computes."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0"], done.stderr
