"""Tokens per second at a 0.1–0.2 B shape (random weights), as a share of what the machine could do at best.

The limit is the time of the matrix products alone that the projections and the scan need: every layer with its own
weights, in the order of a real step. It is timed in turn with the model, because machines throttle. Beside it, on the
same weights: transformers' `Mamba2Model` (chunk by chunk and in one go, float32), transformers' `xLSTMModel`, and the
PyPI package `rwkv`. int8 has weights and rows of 8 bits in its projections and float32, or else bfloat16, in the rest;
its limit is the integer products and the scan's, and bfloat16 is timed in turn with it. `--lengths` are documents of
other lengths, one at a time, `--texts` many short texts of 20 to 400 tokens together, each with its own limit.

    python benchmarks/throughput.py [--family mamba2] [--tokens 8192] [--repeat 5] [--no-peers]
                                    [--lengths 2048 131072] [--texts 100]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import report
from thalweg.bench.matmul_limit import inner_chunk, products
from thalweg.bench.meter import seconds, spread
from thalweg.bench.peers import CHUNK, CHUNK_LOOP, ONE_PASS, RWKV, chunk_loop, one_pass, rwkv_loop, transformers_model
from thalweg.bench.shapes import SHAPES
from thalweg.bench.weights import recurrent_model
from thalweg.checkpoints.saver import save_checkpoint
from thalweg.engine.engine import Engine
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Ids
from thalweg.families import FAMILIES
from thalweg.models.quantized import Quantization


def ours(model: Any, documents: list[np.ndarray], v: int) -> Callable[[], np.ndarray]:
    """Documents of token ids through the engine; the vector of the one that is through first."""

    def run() -> np.ndarray:
        schedule = Schedule(max_tokens_per_step=2 * v, vertical_chunk_size=v)
        results = list(Engine(model, "last", schedule).run(Ids(ids) for ids in documents))
        return results[0].vector

    return run


def saved(model: Any, dtype: torch.dtype) -> Any:
    """transformers' model of the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_checkpoint(model, path, tokenizer_folder=None, embedding=None, dtype=torch.float32)
        return transformers_model(str(path), dtype)


def mamba2_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    if dtype != torch.float32:
        return {}
    theirs, tokens = saved(model, dtype), torch.from_numpy(ids)[None]
    return {
        CHUNK_LOOP: lambda: chunk_loop(theirs, tokens, CHUNK)()[0],
        ONE_PASS: lambda: one_pass(theirs, tokens)()[0],
    }


def xlstm_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    theirs, tokens = saved(model, dtype), torch.from_numpy(ids)[None]
    return {"transformers": lambda: one_pass(theirs, tokens)()[0]}


def rwkv_peers(model: Any, ids: np.ndarray, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    return {RWKV: rwkv_loop(model, ids, CHUNK)} if dtype == torch.float32 else {}


PEERS = {"mamba2": mamba2_peers, "xlstm": xlstm_peers, "rwkv7": rwkv_peers}


def measure(
    family: str, dtype: torch.dtype, args: argparse.Namespace, quantize: Quantization | None = None
) -> dict[str, Any]:
    """Shares of the limit in turns of model and products, then the peers."""
    shape = next(shape for shape in SHAPES.values() if shape.family == family)
    model, v = recurrent_model(shape, dtype, quantize=quantize), args.vertical_chunk_size
    q, label = inner_chunk(model), f"{family}, {quantize + ', ' if quantize else ''}{dtype}"
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, args.tokens)
    best = products(model, v)
    best(), ours(model, [ids[: 2 * v]], v)()
    others = {f"{length} tokens": [np.resize(ids, length)] for length in args.lengths}
    if args.texts:
        sizes = np.random.default_rng(0).integers(20, 401, args.texts)
        others[f"{args.texts} texts"] = [np.resize(ids, size) for size in sizes]
    result: dict[str, Any] = {**turns(model, best, [ids], v, args.repeat, label), "Q": q}
    for name, documents in others.items():
        repeat = args.repeat * args.tokens // sum(map(len, documents))  # about the same time for each
        repeat = min(max(repeat, 1), args.repeat)
        result[name] = turns(model, best, documents, v, repeat, f"{label}, {name}")
    if not args.no_peers and quantize is None and family in PEERS:
        for name, theirs in PEERS[family](model, ids[: args.peer_tokens], dtype).items():
            short = ours(model, [ids[: args.peer_tokens]], v)
            vector = theirs()
            times = [(seconds(short), seconds(theirs)) for _ in range(args.peer_turns)]
            ratio = spread([b / a for a, b in times])
            peer = {"tokens_per_s": args.peer_tokens / min(b for _, b in times), "ours_over_theirs": ratio}
            if vector is not None:
                exact = vector.float().numpy()
                peer["largest_relative_difference"] = float(np.abs(short() - exact).max() / np.abs(exact).max())
            result[name] = peer
            print(f"{label}: {ratio['median']:.2f} times {name}", flush=True)
    return result


def against_bfloat16(family: str, args: argparse.Namespace) -> dict[str, float]:
    """How many times as fast int8 with bfloat16 in the rest is as bfloat16 alone, in turns."""
    shape = next(shape for shape in SHAPES.values() if shape.family == family)
    models = [recurrent_model(shape, torch.bfloat16, quantize=quantize) for quantize in (None, "int8")]
    ids = np.random.default_rng(0).integers(0, models[0].config.vocab_size, args.tokens)
    plain, integer = (ours(model, [ids], args.vertical_chunk_size) for model in models)
    plain(), integer()
    ratio = spread([seconds(plain) / seconds(integer) for _ in range(args.repeat)])
    print(f"{family}, int8: {ratio['median']:.2f} times bfloat16", flush=True)
    return ratio


def turns(
    model: Any, best: Callable[[], None], documents: list[np.ndarray], v: int, repeat: int, label: str
) -> dict[str, Any]:
    """The model and the products in turn. The limit of a turn is the better of one before and one after it."""
    run, tokens = ours(model, documents, v), sum(map(len, documents))
    limits, rates, shares = [], [], []
    for _ in range(repeat):
        before = min(seconds(best) for _ in range(2))
        rate = tokens / seconds(run)
        limit = v / min(before, *(seconds(best) for _ in range(2)))
        limits.append(limit)
        rates.append(rate)
        shares.append(rate / limit)
        print(f"{label}: {rate:,.0f} of {limit:,.0f} tokens/s, {rate / limit:.0%}", flush=True)
    return {"tokens_per_s": spread(rates), "limit": spread(limits), "share": spread(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=[family.name for family in FAMILIES], default="mamba2")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="of further documents")
    parser.add_argument("--texts", type=int, default=0, help="short texts that are read together")
    parser.add_argument("--peer-tokens", type=int, default=8192, help="of the document that peers read")
    parser.add_argument("--peer-turns", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vertical-chunk-size", type=int, default=Schedule().vertical_chunk_size)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {"family": args.family, "tokens": args.tokens, "peer_tokens": args.peer_tokens}
    result["vertical_chunk_size"] = args.vertical_chunk_size
    for dtype in (torch.float32, torch.bfloat16):
        result[str(dtype).removeprefix("torch.")] = measure(args.family, dtype, args)
    result["int8"] = measure(args.family, torch.float32, args, quantize="int8")
    result["int8, bfloat16"] = measure(args.family, torch.bfloat16, args, quantize="int8")
    result["int8 over bfloat16"] = against_bfloat16(args.family, args)
    report("throughput" if args.family == "mamba2" else f"throughput-{args.family}", result)


if __name__ == "__main__":
    main()
