"""Mined rows to a file, block by block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from thalweg.storage.durable import move_durably, sync_file, write_durably

SUFFIXES = (".parquet", ".jsonl")
"""Of the files that are written."""


def write_output(out: Path, blocks: Iterable[Sequence[dict[str, Any]]]) -> None:
    """Write rows of query, positive, negatives, positive_score, negative_scores and, if any, instruction."""
    if out.suffix.lower() == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for rows in blocks for row in rows)
        write_durably(out, lambda stream: stream.writelines(lines))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = [("instruction", pa.string()), ("query", pa.string()), ("positive", pa.string()), ("negatives", texts)]
    schema = pa.schema([*columns, ("positive_score", pa.float32()), ("negative_scores", numbers)])
    fresh = out.with_name(f"{out.name}.tmp")
    with pq.ParquetWriter(fresh, schema) as writer:
        for rows in blocks:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
    sync_file(fresh)
    move_durably(fresh, out)
