"""Evens out the dimensions of a model's vectors, which its losses leave to a few.

    python flatten.py MODEL.pt --taught DIR… --power 0.05 --out flat.pt

Every dimension is divided by its mean square over some of the taught texts to that power, which is a factor of the last
norm's weight. Windows of books are told apart better; near sentences agree a little less with the teacher, and the
less the higher the power (docs/log.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from batches import load_ids
from torch import Tensor
from train import EOS, embed

from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.packing import Packing

TEXTS = 20_000
TOGETHER = 200
LEAST = 0.25  # of the median: smaller mean squares count as this


@torch.inference_mode()
def mean_squares(model: Mamba2, taught: list[Path], seed: int = 0) -> Tensor:
    """(d,) of the normalised vectors of a sample of texts."""
    ids, at = load_ids(taught)
    rows = np.random.default_rng(seed).permutation(len(at) - 1)[:TEXTS]
    total = torch.zeros(model.d_model, dtype=torch.float64)
    for part in np.array_split(rows, max(1, len(rows) // TOGETHER)):
        texts = [np.append(ids[at[row] : at[row + 1]].astype(np.int64), EOS) for row in part]
        lengths = [len(text) for text in texts]
        vectors = embed(model, torch.from_numpy(np.concatenate(texts)), Packing.whole(lengths), torch.tensor(lengths))
        total += vectors.double().square().sum(0)
    return (total / len(rows)).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what mix.py or train.py wrote")
    parser.add_argument("--taught", type=Path, nargs="+", required=True)
    parser.add_argument("--power", type=float, default=0.05)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    saved = torch.load(args.model, weights_only=True)
    model = Mamba2(Mamba2Config(**saved["config"])).eval()
    model.load_state_dict({name: value.float() for name, value in saved["model"].items()})
    squares = mean_squares(model, args.taught)
    scale = (squares / squares.median()).clamp_min(LEAST) ** -args.power
    saved["model"]["norm.weight"] = (model.norm.weight.detach() * scale).half()
    torch.save(saved, args.out)
    print(f"factors {scale.min():.3f} to {scale.max():.3f}")


if __name__ == "__main__":
    main()
