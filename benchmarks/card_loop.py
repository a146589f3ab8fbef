"""The loop of the published models' card, left padding and `cache_params`: transformers' own Mamba2Model against ours.

python benchmarks/card_loop.py [--texts 24] [--chunk 512]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from common import report
from thalweg.assets import model_folder
from thalweg.integrations.transformers import Mamba2Model


@torch.no_grad()
def loop(model: Any, ids: Tensor, mask: Tensor, chunk: int) -> Tensor:
    cache = None
    for part, own in zip(ids.split(chunk, dim=1), mask.split(chunk, dim=1), strict=True):
        output = model(input_ids=part, attention_mask=own, use_cache=True, cache_params=cache)
        cache = output.cache_params
    return output.last_hidden_state[:, -1]


def compare(models: dict[str, Any], lengths: np.ndarray, chunk: int, repetitions: int) -> dict[str, Any]:
    """The fastest run of each model over one left-padded batch of random texts."""
    width = int(lengths.max())
    ids = torch.randint(2, 30_000, (len(lengths), width))
    mask = (torch.arange(width) >= width - torch.from_numpy(lengths)[:, None]).long()
    best = dict.fromkeys(models, float("inf"))
    vectors = {}
    for _ in range(repetitions):  # in turn: what else the machine does falls on both
        for name, model in models.items():
            began = time.perf_counter()
            vectors[name] = loop(model, ids, mask, chunk)
            best[name] = min(best[name], time.perf_counter() - began)
    rates = {name: int(lengths.sum()) / taken for name, taken in best.items()}
    difference = (vectors["thalweg"] - vectors["transformers"]).norm() / vectors["transformers"].norm()
    return {
        "tokens": int(lengths.sum()),
        "padding": ids.numel() - int(lengths.sum()),
        "tokens_per_s": rates,
        "thalweg_over_transformers": rates["thalweg"] / rates["transformers"],
        "relative_difference": float(difference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    models = {
        "transformers": transformers.Mamba2Model.from_pretrained(model_folder()).eval(),
        "thalweg": Mamba2Model.from_pretrained(model_folder()),
    }
    random = np.random.default_rng(0)
    batches = {
        "equal": np.full(args.texts, 1024),
        "mixed": np.exp(random.uniform(np.log(20), np.log(4096), args.texts)).astype(int),
    }
    results: dict[str, Any] = {"texts": args.texts, "chunk": args.chunk}
    for kind, lengths in batches.items():
        results[kind] = compare(models, lengths, args.chunk, args.repetitions)
        print(kind, {name: f"{rate:,.0f} tokens/s" for name, rate in results[kind]["tokens_per_s"].items()})
    report("card_loop", results)


if __name__ == "__main__":
    main()
