"""Small data files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """By the suffix of the name: JSON lines, those gzipped, or Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def pairs(n: int, start: int = 0) -> list[Row]:
    """Rows that differ."""
    return [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(start, start + n)]


def triples(n: int, n_negatives: int = 1, start: int = 0) -> list[Row]:
    """Rows that differ, with as many negatives."""
    return [
        {**row, "negatives": [f"wrong {i}.{k}" for k in range(n_negatives)]}
        for i, row in enumerate(pairs(n, start), start)
    ]
