"""Numbers in sentences."""

from __future__ import annotations

import re
from pathlib import Path

import thalweg
from thalweg.system.words import counted


def test_one_is_not_many() -> None:
    assert [counted(n, "document") for n in (0, 1, 2, 1234)] == [
        *("0 documents", "1 document", "2 documents", "1,234 documents")
    ]
    assert [counted(n, "query", "queries") for n in (1, 5)] == ["1 query", "5 queries"]


def test_no_count_stands_before_a_plural() -> None:
    """`{n:,} documents` is "1 documents" some day; `counted` knows better."""
    nouns = (
        *("attempt", "byte", "call", "document", "example", "item", "layer", "negative", "parameter", "point", "query"),
        *("request", "result", "row", "step", "task", "text", "thread", "token", "try", "vector", "word"),
    )
    plurals = "|".join(noun.removesuffix("y") + "ies" if noun.endswith("ry") else noun + "s" for noun in nouns)
    wrong = re.compile(rf"\{{(?!counted|[A-Z])[^{{}}]+\}} (?:{plurals})\b(?!/)")
    allowed = ("prompts.py", "training/data/", "{n_processes} processes", "Random(", "refuses requests")
    found = [
        f"{path}:{number}: {line.strip()}"
        for part in ("cli", "evaluation", "synthesis", "training", "system")
        for path in sorted((Path(thalweg.__file__).parent / part).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if wrong.search(line) and not any(each in f"{path}:{line}" for each in allowed)
    ]
    assert not found, "\n".join(found)
