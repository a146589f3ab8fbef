"""Weighted mean of models that share a history: what warm.py and train.py wrote, or an earlier version's folder.

    python mix.py LAST.pt=0.3 static.pt=0.25 EARLIER=0.2 … --out mixed.pt

The weights sum to 1. Recipe and record of the first run of train.py among them go along, for export.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import thalweg


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights in float32, and what else was saved."""
    if path.is_dir():
        return {name: value.float() for name, value in thalweg.load(path).model.state_dict().items()}, {}
    saved = torch.load(path, weights_only=True)
    weights = saved["model"] if "model" in saved else saved["weights"]
    return {name: value.float() for name, value in weights.items()}, saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="path=weight")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shares = {Path(path): float(share) for path, share in (item.rsplit("=", 1) for item in args.models)}
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise SystemExit(f"the weights sum to {sum(shares.values())}, not to 1")
    mixed: dict[str, torch.Tensor] = {}
    record: dict[str, Any] = {}
    for path, share in shares.items():
        weights, saved = read(path)
        mixed = {name: mixed.get(name, 0.0) + share * value for name, value in weights.items()}
        if "progress" in saved and not record:
            record = {name: saved[name] for name in ("recipe", "config", "progress")}
    torch.save({"model": {name: value.half() for name, value in mixed.items()}, **record}, args.out)


if __name__ == "__main__":
    main()
