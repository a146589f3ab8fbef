"""RWKV-7 against PyPI `rwkv` and a float64 reference, on tiny random checkpoints of every public format and variant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints.formats_rwkv7 import Tensors, reference, tiny_tensors, write_emb, write_fla, write_pth
from thalweg.checkpoints import load_checkpoint
from thalweg.packing import Packing

IDS = torch.randint(0, 96, (143,), generator=torch.Generator().manual_seed(0))

PEER = """
import sys, torch
from rwkv.model import RWKV

torch.set_num_threads(1)
model = RWKV(model=sys.argv[1].removesuffix(".pth"), strategy="cpu fp32")
logits, _ = model.forward(torch.load(sys.argv[2]).tolist(), None, full_output=True)
torch.save(logits, sys.argv[3])
"""


def peer_logits(path: Path, ids: Tensor) -> Tensor:
    """What PyPI `rwkv` makes of a `.pth`; in a process of its own, as it sets global switches and prints."""
    ids_file, logits_file = path.with_name("ids.pt"), path.with_name("logits.pt")
    torch.save(ids, ids_file)
    environment = {**os.environ, "RWKV_V7_ON": "1", "RWKV_CUDA_ON": "0", "RWKV_JIT_ON": "0"}
    command = [sys.executable, "-c", PEER, str(path), str(ids_file), str(logits_file)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return torch.load(logits_file)


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


@pytest.mark.subprocess
@pytest.mark.parametrize("layer_0_v", [False, True])
def test_equals_pypi_rwkv_in_float32(layer_0_v: bool, tmp_path: Path) -> None:
    """Hidden vectors: a head that is the identity makes the peer's logits the output of ln_out.

    Measured: 1.6e-6; each is within 2.1e-6 of float64.
    """
    tensors = {**tiny_tensors(layer_0_v=layer_0_v), "head.weight": torch.eye(32)}
    path = write_pth(tmp_path, tensors)
    want = peer_logits(path, IDS)
    model = load_checkpoint(path).model
    with torch.inference_mode():
        got, _ = model(IDS, Packing.whole([len(IDS)]))
    assert relative_error(got, want) <= 2e-5


@pytest.mark.subprocess
def test_logits_equal_pypi_rwkv(tmp_path: Path) -> None:
    """The usual head, 64 channels a head as in all published models, bfloat16 in the file."""
    tensors = tiny_tensors(d_model=128, head_dim=64, d_ffn=256, n_layers=2)
    path = write_pth(tmp_path, tensors, dtype=torch.bfloat16)
    want = peer_logits(path, IDS)
    model = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        got, _ = model(IDS, Packing.whole([len(IDS)]))
    assert relative_error(got @ tensors["head.weight"].bfloat16().float().T, want) <= 2e-5


def without_embedding_norm() -> Tensors:
    return {name: tensor for name, tensor in tiny_tensors().items() if ".ln0." not in name}


FORMATS: dict[str, Any] = {
    "pth": (tiny_tensors(), write_pth),
    "pth, vectors without ones": (tiny_tensors(), lambda folder, tensors: write_pth(folder, squeezed(tensors))),
    "fla": (tiny_tensors(), write_fla),
    "fla, stacked mixes": (tiny_tensors(), lambda folder, tensors: write_fla(folder, tensors, stacked=True)),
    "fla, bare": (tiny_tensors(), lambda folder, tensors: write_fla(folder, tensors, prefix="", lm_head=False)),
    "fla, wide values": (tiny_tensors(d_value=64), write_fla),
    "fla, norms without bias": (tiny_tensors(norm_bias=False), write_fla),
    "fla, no embedding norm": (without_embedding_norm(), write_fla),
    "rwkv-emb": (tiny_tensors(), write_emb),
    "rwkv-emb, vision": (tiny_tensors(), lambda folder, tensors: write_emb(folder, tensors, vision=True)),
}


def squeezed(tensors: Tensors) -> Tensors:
    return {name: tensor.squeeze() if tensor.ndim == 3 else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_equals_the_float64_reference(name: str, tmp_path: Path) -> None:
    tensors, write = FORMATS[name]
    write(tmp_path, tensors)
    model = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        got, _ = model(IDS, Packing.whole([len(IDS)]))
    # BlinkDL's eps stands for 64 channels a head, whatever there are; fla's grows with them.
    head_eps = 8e-5 if name.startswith("fla") else 64e-5
    assert relative_error(got, reference(tensors, IDS, head_eps=head_eps)) <= 1e-5


def test_another_norm_eps(tmp_path: Path) -> None:
    write_fla(tmp_path, tiny_tensors(), config={"norm_eps": 1e-2})
    model = load_checkpoint(tmp_path).model
    with torch.inference_mode():
        got, _ = model(IDS, Packing.whole([len(IDS)]))
    assert relative_error(got, reference(tiny_tensors(), IDS, norm_eps=1e-2, head_eps=8e-2)) <= 1e-5


def test_bfloat16_weights(tmp_path: Path) -> None:
    """Matrix products in bfloat16, all else in float32. Measured: 0.010."""
    tensors = tiny_tensors(d_model=128, head_dim=64, d_ffn=256)
    write_pth(tmp_path, tensors, dtype=torch.bfloat16)
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    checkpoint = load_checkpoint(tmp_path, dtype="auto")
    assert checkpoint.weights_dtype == torch.bfloat16
    with torch.inference_mode():
        got, state = checkpoint.model(IDS, Packing([len(IDS)], wanted=(0,)))
    assert all(tensor.dtype == torch.float32 for layer in state for tensor in layer)
    exact = reference(rounded, IDS)
    assert ((got - exact).square().mean() / exact.square().mean()).sqrt() <= 0.03
