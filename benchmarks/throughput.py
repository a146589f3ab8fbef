"""Tokens per second at a 0.1–0.2 B shape (random weights), as a share of what the machine could do at best.

The limit is the time of the matrix products alone that the projections and the scan need: every layer with its own
weights, in the order of a real step. It is timed in turn with the model, because machines throttle. Beside it, on the
same weights: transformers' `Mamba2Model` (chunk by chunk and in one go, float32), transformers' `xLSTMModel`, and the
PyPI package `rwkv`.

    python benchmarks/throughput.py [--family mamba2] [--tokens 8192] [--repeat 5] [--no-peers]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import report, seconds, spread
from shapes import SHAPES, products
from thalweg.checkpoints.rwkv7 import LAYOUTS as RWKV7_LAYOUTS
from thalweg.checkpoints.saver import save_checkpoint
from thalweg.engine import Engine, Ids, Schedule


def ours(model: Any, ids: np.ndarray, v: int) -> Callable[[], np.ndarray]:
    """One document of len(ids) tokens through the engine."""

    def run() -> np.ndarray:
        schedule = Schedule(max_tokens_per_step=v, vertical_chunk_size=v)
        return next(iter(Engine(model, "last", schedule).run([Ids(ids)]))).vector

    return run


def transformers_model(model: Any, name: str, dtype: torch.dtype) -> Any:
    """transformers' model of the same weights."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_checkpoint(model, path, tokenizer_folder=None, embedding=None, dtype=torch.float32)
        return getattr(transformers, name).from_pretrained(path, dtype=dtype).eval()


def mamba2_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    if dtype != torch.float32:
        return {}
    theirs = transformers_model(model, "Mamba2Model", dtype)
    tokens = torch.from_numpy(ids)[None]

    @torch.inference_mode()
    def chunk_loop() -> torch.Tensor:
        cache = None
        for start in range(0, tokens.shape[1], 512):
            out = theirs(tokens[:, start : start + 512], cache_params=cache, use_cache=True)
            cache = out.cache_params
        return out.last_hidden_state[0, -1]

    @torch.inference_mode()
    def one_pass() -> torch.Tensor:
        return theirs(tokens).last_hidden_state[0, -1]

    return {"transformers, chunk loop": chunk_loop, "transformers, one pass": one_pass}


def xlstm_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    theirs = transformers_model(model, "xLSTMModel", dtype)
    tokens = torch.from_numpy(ids)[None]

    @torch.inference_mode()
    def one_pass() -> torch.Tensor:
        return theirs(tokens).last_hidden_state[0, -1]

    return {"transformers": one_pass}


def rwkv_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """The package runs float32 on the CPU; it gives logits, so only its last layer differs from ours."""
    if dtype != torch.float32:
        return {}
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    layout = next(layout for layout in RWKV7_LAYOUTS if layout.name == "rwkv7/pth")
    tensors = {}
    for name, tensor in model.state_dict().items():
        rename, stored = layout.stored_name(name)
        tensors[stored] = rename.save(tensor)
    tensors["head.weight"] = torch.zeros(model.config.vocab_size, model.config.d_model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save(tensors, path)
        theirs = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    tokens = ids.tolist()

    def chunk_loop() -> None:
        state = None
        for start in range(0, len(tokens), 512):
            _, state = theirs.forward(tokens[start : start + 512], state)

    return {"rwkv": chunk_loop}


PEERS = {"mamba2": mamba2_peers, "xlstm": xlstm_peers, "rwkv7": rwkv_peers}


def measure(family: str, dtype: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """Shares of the limit in turns of model and products, then the peers."""
    shape = SHAPES[family]
    model, q, v = shape.build(dtype), shape.chunk_size(dtype), args.vertical_chunk_size
    ids = np.random.default_rng(0).integers(0, shape.config.vocab_size, args.tokens)
    best, run = products(shape, model, v, q), ours(model, ids, v)
    best(), ours(model, ids[: 2 * v], v)()
    limits, rates, shares = [], [], []
    for _ in range(args.repeat):
        limit = v / min(seconds(best) for _ in range(3))
        rate = args.tokens / seconds(run)
        limits.append(limit)
        rates.append(rate)
        shares.append(rate / limit)
        print(f"{family}, {dtype}: {rate:,.0f} of {limit:,.0f} tokens/s, {rate / limit:.0%}", flush=True)
    result: dict[str, Any] = {
        "tokens_per_s": spread(rates),
        "limit": spread(limits),
        "share": spread(shares),
        "Q": q,
    }
    if not args.no_peers and family in PEERS:
        for name, theirs in PEERS[family](model, ids[: args.peer_tokens], dtype).items():
            short = ours(model, ids[: args.peer_tokens], v)
            theirs()
            turns = [(seconds(short), seconds(theirs)) for _ in range(3)]
            ratio = spread([b / a for a, b in turns])
            peer = {"tokens_per_s": args.peer_tokens / min(b for _, b in turns), "ours_over_theirs": ratio}
            vector = theirs()
            if vector is not None:
                exact = vector.float().numpy()
                peer["largest_relative_difference"] = float(np.abs(short() - exact).max() / np.abs(exact).max())
            result[name] = peer
            print(f"{family}, {dtype}: {ratio['median']:.2f} times {name}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=SHAPES, default="mamba2")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--peer-tokens", type=int, default=8192, help="of the document that peers read")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vertical-chunk-size", type=int, default=Schedule().vertical_chunk_size)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {"family": args.family, "tokens": args.tokens, "peer_tokens": args.peer_tokens}
    result["vertical_chunk_size"] = args.vertical_chunk_size
    for dtype in (torch.float32, torch.bfloat16):
        result[str(dtype).removeprefix("torch.")] = measure(args.family, dtype, args)
    report("throughput" if args.family == "mamba2" else f"throughput-{args.family}", result)


if __name__ == "__main__":
    main()
