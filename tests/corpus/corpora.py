"""Corpora of mixed kinds, runs over them, and what came out, for comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import thalweg
from thalweg.corpus import Mode, Settings, Summary, discover, embed_files

from .tiny import make_text


def write_corpus(root: Path, long_words: int = 3000, broken_words: int = 300) -> Path:
    """A long file, short ones, tables with good and bad rows, and files that cannot be read."""
    root.mkdir()
    (root / "a-long.txt").write_text(make_text(long_words, 1))
    for i in range(6):
        (root / f"b{i}.md").write_text(make_text(20 + 30 * i, 10 + i))
    rows = [json.dumps({"text": make_text(5 * (i % 7), i), "key": f"k{i}"}) for i in range(30)]
    (root / "c.jsonl").write_text("\n".join([*rows[:10], "no json", *rows[10:]]))
    (root / "d.csv").write_text('id,text\n1,"one, two"\n2,\n3,three\n')
    (root / "e-bad.txt").write_bytes(make_text(broken_words, 3).encode() + b"\xff")
    (root / "f-empty.txt").write_text("")
    (root / "g-binary.txt").write_bytes(b"\0\1\2")
    (root / "h-last.txt").write_text(make_text(700, 4))
    return root


def run(
    embedder: thalweg.Embedder, root: Path, out: Path, mode: Mode = "new", on_status: Any = None, **settings: Any
) -> Summary:
    files, unreadable, left_out = discover([str(root)])
    follow = {} if on_status is None else {"on_status": on_status}
    return embed_files(
        embedder, files, out, Settings(**settings), unreadable=unreadable, left_out=left_out, mode=mode, **follow
    )


def search(out: Path, embedder: thalweg.Embedder, query: str, k: int, **options: Any) -> list[thalweg.Hit]:
    """One question to a corpus that is opened for it."""
    return thalweg.open_corpus(out, model=embedder).search(query, k, **options)


def rows_of(out: Path) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
    """All columns but the vectors, and the vectors as they are stored."""
    if out.suffix == ".parquet":
        table = pq.read_table(out)
        return table.drop_columns(["vector"]).to_pylist(), np.array(table.column("vector").to_pylist())
    if out.suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return rows, np.array([row.pop("vector") for row in rows])
    lines = out.with_name(f"{out.name}.ids.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], np.load(out)


def assert_same_output(a: Path, b: Path) -> None:
    """Ids, order and text equal, vectors within 1e-5."""
    (rows_a, vectors_a), (rows_b, vectors_b) = rows_of(a), rows_of(b)
    assert rows_a == rows_b
    assert np.abs(vectors_a - vectors_b).max() <= 1e-5
