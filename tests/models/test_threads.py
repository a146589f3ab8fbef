"""The same bits on any number of threads: of every model but for its matrix products, and of whole vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import thalweg
from tests.models.registry import FAMILIES, VOCABULARY
from tests.ops.harness import with_kernels
from thalweg.packing import Packing

PRODUCTS = {
    *(torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.linear),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_the_products_of_a_model(family: str, on: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().requires_grad_(False).to(dtype)
    lengths = [3000, 1, 2500, 800, 38]  # more than 32,768 numbers in all but what has a few heads
    packing = Packing(lengths, n_carried=1, wanted=(0, 2))
    tokens = torch.randint(VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(0))

    def run() -> list[torch.Tensor]:
        hidden, state = model(tokens, packing, model.init_state(1))
        return [hidden, *(t for layer in state for t in layer)]

    with torch.inference_mode(), with_kernels(on), ProductsOfOneThread():
        on_threads(run)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
def test_whole_vectors_of_the_shipped_model_in_large_steps(on: bool, dtype: Any) -> None:
    model = thalweg.load(dtype=dtype)
    rng = np.random.default_rng(0)
    words = [f"{word}{n}" for n in range(40) for word in ("river", "valley", "stone", "a", "of", "flows")]
    texts = [" ".join(rng.choice(words, size)) for size in (4000, 7, 2100, 900, 60)]

    def run() -> list[torch.Tensor]:
        return [torch.from_numpy(model.encode(texts, vertical_chunk_size=3000, max_tokens_per_step=6001))]

    with with_kernels(on):
        on_threads(run)
