"""What the benchmarks share: one JSON line at the end, results on disk, the allocator as the command line has it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from thalweg.bench.machine import machine

os.environ.setdefault("THALWEG_MALLOC", "1")

RESULTS = Path(__file__).parent / "results"


def report(name: str, result: dict[str, Any]) -> None:
    """Keep the result and print it as the last line."""
    result = {"benchmark": name, **result, "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
