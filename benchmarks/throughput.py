"""Tokens per second on the mamba2-130m shape (random weights), as a share of what the machine could do at best.

The limit is the time of the matrix products alone that the projections and the scan need: every layer with its own
weights, in the order of a real step. It is timed in turn with the model, because machines throttle. Beside it, on the
same weights in float32, transformers' `Mamba2Model` chunk by chunk and in one go.

    python benchmarks/throughput.py [--tokens 8192] [--repeat 5] [--no-peers]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from common import report, seconds, spread
from thalweg.engine import Engine, Ids, Schedule
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.ops.ssd import default_chunk_size

SHAPE = Mamba2Config(vocab_size=50288, d_model=768, n_layers=24, n_heads=24, head_dim=64, d_state=128)


def build(dtype: torch.dtype) -> Mamba2:
    torch.manual_seed(0)
    model = Mamba2(SHAPE).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not name.endswith(("A_log", "dt_bias", ".D")):  # as `load_checkpoint` does
            parameter.data = parameter.data.to(dtype)
    return model


def products(model: Mamba2, n: int, q: int) -> Callable[[], None]:
    """The matrix products of one step of n tokens and nothing else."""
    c, dtype = SHAPE, model.embeddings.weight.dtype
    u, y = torch.randn(n, c.d_model).to(dtype), torch.randn(n, c.d_inner).to(dtype)
    heads_qq = torch.randn(c.n_heads, q, q).to(dtype)
    heads_qp = torch.randn(c.n_heads, q, c.head_dim).to(dtype)
    q_k, k_q = torch.randn(q, c.d_state).to(dtype), torch.randn(c.d_state, q).to(dtype)
    state, wide = torch.randn(c.d_state, c.d_inner).to(dtype), torch.randn(q, c.d_inner).to(dtype)

    @torch.inference_mode()
    def run() -> None:
        for layer in model.layers:
            torch.nn.functional.linear(u, layer.mixer.in_proj.weight)
            for _ in range(n // q):
                q_k @ k_q  # scores, shared by all heads of a group
                torch.bmm(heads_qq, heads_qp)  # inside the block
                q_k @ state  # from the past
                k_q @ wide  # into the state
            torch.nn.functional.linear(y, layer.mixer.out_proj.weight)

    return run


def ours(model: Mamba2, ids: np.ndarray, v: int) -> Callable[[], None]:
    """One document of len(ids) tokens through the engine."""

    def run() -> None:
        list(Engine(model, "last", Schedule(max(2 * v, 64), v, 8)).run([Ids(ids)]))

    return run


def peers(model: Mamba2, ids: np.ndarray) -> dict[str, float]:
    """Tokens per second of transformers on the same weights: its chunk loop (V = 512) and one pass over all."""
    from transformers import Mamba2Config as TheirConfig
    from transformers import Mamba2Model

    c = SHAPE
    config = TheirConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_heads=c.n_heads,
        head_dim=c.head_dim,
        state_size=c.d_state,
        n_groups=c.n_groups,
        chunk_size=256,
    )
    theirs = Mamba2Model(config).eval()
    weights = {name.replace(".conv.", ".conv1d."): tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict({n: t[:, None] if n.endswith("conv1d.weight") else t for n, t in weights.items()})
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    last: list[torch.Tensor] = []

    @torch.inference_mode()
    def chunk_loop() -> None:
        cache = None
        for start in range(0, tokens.shape[1], 512):
            out = theirs(tokens[:, start : start + 512], cache_params=cache, use_cache=True)
            cache = out.cache_params
        last.append(out.last_hidden_state[0, -1])

    @torch.inference_mode()
    def one_pass() -> None:
        last.append(theirs(tokens).last_hidden_state[0, -1])

    rates = {"chunk_loop": len(ids) / seconds(chunk_loop), "one_pass": len(ids) / seconds(one_pass)}
    vector = next(iter(Engine(model, "last").run([Ids(ids)]))).vector
    error = max(float((torch.from_numpy(vector) - other).abs().max() / other.abs().max()) for other in last)
    return {**rates, "largest_relative_difference": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vertical-chunk-size", type=int, default=Schedule().vertical_chunk_size)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    v = args.vertical_chunk_size
    ids = np.random.default_rng(0).integers(0, SHAPE.vocab_size, args.tokens)
    result: dict[str, object] = {"tokens": args.tokens, "vertical_chunk_size": v}
    rate32 = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        model = build(dtype)
        q = default_chunk_size(dtype)
        best, run = products(model, v, q), ours(model, ids, v)
        best(), ours(model, ids[: 2 * v], v)()
        limits, rates, shares = [], [], []
        for _ in range(args.repeat):
            limit = v / min(seconds(best) for _ in range(3))
            rate = args.tokens / seconds(run)
            limits.append(limit)
            rates.append(rate)
            shares.append(rate / limit)
            print(f"{dtype}: {rate:,.0f} of {limit:,.0f} tokens/s, {rate / limit:.0%}", flush=True)
        name = str(dtype).removeprefix("torch.")
        result[name] = {"tokens_per_s": spread(rates), "limit": spread(limits), "share": spread(shares), "Q": q}
        if dtype == torch.float32:
            rate32 = spread(rates)["median"]
            if not args.no_peers:
                their = peers(model, ids)
                result["transformers"] = their | {
                    "ours_over_chunk_loop": rate32 / their["chunk_loop"],
                    "ours_over_one_pass": rate32 / their["one_pass"],
                }
    report("throughput", result)


if __name__ == "__main__":
    main()
