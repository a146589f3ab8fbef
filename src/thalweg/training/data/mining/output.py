"""Mined rows to a file, block by block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from thalweg.storage.durable import move_durably, sync_file, write_durably

SUFFIXES = (".parquet", ".jsonl")
"""Formats of the files that are written."""


_GROUP_CHARACTERS = 64 << 20
"""Bytes of text that are written at a time: Arrow takes 2 GiB in a column."""


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
        for rows in (group for block in blocks for group in _groups(block)):
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
    sync_file(fresh)
    move_durably(fresh, out)


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """Rows that stand together, as many as are small enough, but at least one."""
    begin, size = 0, 0
    for end, row in enumerate(rows):
        length = len(row["query"]) + len(row["positive"]) + sum(map(len, row["negatives"]))
        if end > begin and size + length > _GROUP_CHARACTERS:
            yield rows[begin:end]
            begin, size = end, 0
        size += length
    if begin < len(rows):
        yield rows[begin:]
