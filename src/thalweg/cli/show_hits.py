"""Passages found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thalweg.cli.console import Console, panel, text

if TYPE_CHECKING:
    from thalweg.corpus import Hit

SHOWN = 400
"""Characters of a passage."""


def show_answers(console: Console, answers: Sequence[tuple[str, Sequence[Hit]]], *, headed: bool, n_files: int) -> None:
    """The passages of each question.

    headed: below their questions; n_files: how many corpora they are from, which are named if there are several.
    """
    for query, hits in answers:
        if headed:
            console.print(text(f"Nearest to: {excerpt(query)}", "bold"))
        show_hits(console, hits, with_files=n_files > 1)
        if not hits:
            console.print(text("no passage found", "dim"))


def show_hits(console: Console, hits: Sequence[Hit], *, with_files: bool = False) -> None:
    """A panel for each, the nearest first."""
    for rank, hit in enumerate(hits, 1):
        row = hit.row
        title = f"{rank} · {hit.score:.3f} · {row['id']} · section {row['section']}"
        place = f"characters {row['char_start']:,}–{row['char_end']:,}"
        if with_files:
            place = f"{hit.file} · {place}"
        body = text(excerpt(row["text"])) if row.get("text") is not None else text("embedded with --no-text", "dim")
        console.print(panel(body, title, place))


def excerpt(passage: str) -> str:
    """The beginning of a passage, its white space made plain, cut between words."""
    words = " ".join(passage[: 4 * SHOWN].split())
    return words if len(words) <= SHOWN else words[:SHOWN].rpartition(" ")[0] + " …"
