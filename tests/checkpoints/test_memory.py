"""Weights are never twice in memory: the peak of a fresh process, in which every weight is read, is their size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from thalweg.checkpoints.formats import FORMATS
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
