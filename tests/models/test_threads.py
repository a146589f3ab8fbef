"""The same bits on any number of threads: of every model but for its matrix products, and of whole vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import thalweg
from tests.models.registry import FAMILIES, VOCABULARY
from tests.ops.harness import with_kernels
from thalweg import kernels
from thalweg.ops import activations
from thalweg.packing import Packing

ROOT = Path(__file__).parents[2]
PRODUCTS = {
    *(torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm, torch.ops.aten.baddbmm),
    *(torch.ops.aten.linear, torch.ops.aten.matmul),
    torch.ops.aten.linalg_solve_triangular,
}


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ProductsOfOneThread(TorchDispatchMode):
    """Matrix products belong to the library, which may sum in another order where there are more threads."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        with threads(1):
            return func(*args, **(kwargs or {}))


def on_threads(run: Callable[[], list[torch.Tensor]]) -> None:
    """What `run` gives is the same, bit by bit, on one to four threads."""
    results = []
    for n in range(1, 5):
        with threads(n):
            results.append(run())
    for n, result in enumerate(results[1:], 2):
        for got, want in zip(result, results[0], strict=True):
            assert torch.equal(got, want), n


def family(name: str, dtype: torch.dtype) -> Callable[[], list[torch.Tensor]]:
    """A run of a tiny model whose widths times its tokens are more than 32,768 numbers."""
    torch.manual_seed(0)
    model = FAMILIES[name]().eval().requires_grad_(False).to(dtype)
    lengths = [900, 1, 700, 38]
    packing = Packing(lengths, n_carried=1, wanted=(0, 2))
    tokens = torch.randint(VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run() -> list[torch.Tensor]:
        hidden, state = model(tokens, packing, model.init_state(1))
        return [hidden, *(t for layer in state for t in layer)]

    return run


def shipped_model(dtype: Any) -> Callable[[], list[torch.Tensor]]:
    """Long texts in steps of up to 6,001 tokens."""
    model = thalweg.load(dtype=dtype)
    rng = np.random.default_rng(0)
    words = [f"{word}{n}" for n in range(40) for word in ("river", "valley", "stone", "a", "of", "flows")]
    texts = [" ".join(rng.choice(words, size)) for size in (2500, 7, 1300, 60)]
    return lambda: [torch.from_numpy(model.encode(texts, vertical_chunk_size=3000, max_tokens_per_step=6001))]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_but_the_products_of_a_model(name: str, on: bool, dtype: torch.dtype) -> None:
    with with_kernels(on), ProductsOfOneThread():
        on_threads(family(name, dtype))


@pytest.mark.slow
@pytest.mark.skipif(not kernels.enabled(), reason="the small products that PyTorch alone makes are MKL's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_vectors_of_the_shipped_model_in_large_steps(dtype: str) -> None:
    on_threads(shipped_model(dtype))


EVERYTHING = """
from tests.models.registry import FAMILIES
from tests.models.test_threads import family, on_threads, shipped_model
import torch

for name in FAMILIES:
    on_threads(family(name, torch.float32))
on_threads(shipped_model("float32"))
"""


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="it is about MKL")
@pytest.mark.skipif(not kernels.enabled(), reason="batched products, which PyTorch alone makes, still differ")
def test_all_of_every_model_where_mkl_is_told_to() -> None:
    """`MKL_CBWR=AUTO,STRICT`, read when MKL is loaded: float32 products no longer depend on the number of threads."""
    environment = os.environ | {"MKL_CBWR": "AUTO,STRICT"}
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


SIZES = [(40_000,), (98_304,), (100_003, 3), (513, 129), (3, 70_001), (6001, 24)]


@pytest.mark.slow
@pytest.mark.parametrize("strided", [False, True], ids=["dense", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["silu", "sigmoid", "softplus", "gelu_tanh"])
def test_activations(name: str, dtype: torch.dtype, strided: bool) -> None:
    """Those of PyTorch on one thread, up to the rounding of the last digit."""
    plain: Callable[..., torch.Tensor] = getattr(F, name, partial(F.gelu, approximate="tanh"))
    function = getattr(activations, name)
    for size in SIZES:
        x = 3 * torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = x[..., 1:-1] if strided and size[-1] > 2 else x
        on_threads(lambda x=x: [function(x)])
        if name in ("silu", "sigmoid"):
            on_threads(lambda x=x: [function(x.clone(memory_format=torch.preserve_format), inplace=True)])
        torch.testing.assert_close(function(x), plain(x))
