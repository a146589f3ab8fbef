"""What a program sets for its own tensors, a default device and dtype, is nothing to ours.

In processes of their own: a kernel that was handed another tensor than it takes would write anywhere.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np, torch, thalweg
from tests.models.registry import FAMILIES
from tests.models.test_quantized import NARROW
from tests.ops.harness import with_kernels
from thalweg.models.quantized import quantize_
from thalweg.packing import Packing

def models():
    for name, make in FAMILIES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for quantization in (None, "int8", "int4"):
                torch.manual_seed(0)
                model = make().eval().requires_grad_(False).to(dtype)
                if quantization:
                    quantize_(model, quantization, min_width=NARROW)
                yield name, model

def run(model):
    tokens = torch.arange(90, device="cpu") % 64
    packing = Packing([50, 7, 33], n_carried=1, wanted=(0, 2))
    with torch.inference_mode():
        hidden, state = model(tokens, packing, model.init_state(1), (3, 60))
    return [hidden, *(t for layer in state for t in layer)]

for on in (True, False):
    with with_kernels(on):
        for name, model in models():
            want = run(model)
            SET
            got = run(model)
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True)), name
        texts = ["The river runs through the valley. " * 40, "", "a text"]
        for settings in ({}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"quantize": "int4"}):
            want = thalweg.load(**settings).encode(texts)
            SET
            got = thalweg.load(**settings).encode(texts)
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
            assert np.array_equal(got, want), settings
"""

GRADIENTS = """
import torch
from tests.models.registry import FAMILIES
from thalweg.gradients import Checkpointing, embed_checkpointed
from thalweg.gradients.forward import embed_packed

lengths = [70, 3, 90, 1]
tokens = torch.arange(sum(lengths)) % 64

def run(model):
    found = []
    for pooling in ("last", "mean"):
        for vectors in (
            embed_packed(model, tokens, lengths, pooling=pooling),
            embed_checkpointed(model, tokens, lengths, pooling=pooling, checkpointing=Checkpointing(32)).vectors,
        ):
            found += [vectors, *torch.autograd.grad(vectors.square().sum(), list(model.parameters()))]
    return found

for name, make in FAMILIES.items():
    torch.manual_seed(0)
    model = make()
    want = run(model)
    SET
    got = run(model)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True)), name
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("program", [PROGRAM, GRADIENTS], ids=["inference", "gradients"])
@pytest.mark.parametrize(
    "setting", ["torch.set_default_device('meta')", "torch.set_default_dtype(torch.float64)"], ids=["device", "dtype"]
)
def test_vectors_are_the_same_bits(setting: str, program: str) -> None:
    program = program.replace("SET", setting)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
