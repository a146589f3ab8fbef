"""Numbers in sentences."""

from __future__ import annotations

from thalweg.system.words import counted


def test_one_is_not_many() -> None:
    assert [counted(n, "document") for n in (0, 1, 2, 1234)] == [
        *("0 documents", "1 document", "2 documents", "1,234 documents")
    ]
    assert [counted(n, "query", "queries") for n in (1, 5)] == ["1 query", "5 queries"]
