"""Passages found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thalweg.cli.console import Console, panel, text

if TYPE_CHECKING:
    from thalweg.corpus import Hit

SHOWN = 400
"""Characters of a passage."""


def show_hits(console: Console, hits: Sequence[Hit]) -> None:
    """A panel for each, the nearest first."""
    for rank, hit in enumerate(hits, 1):
        row = hit.row
        title = f"{rank} · {hit.score:.3f} · {row['id']} · section {row['section']}"
        place = f"characters {row['char_start']:,}–{row['char_end']:,}"
        body = text(excerpt(row["text"])) if "text" in row else text("embedded with --no-text", "dim")
        console.print(panel(body, title, place))


def excerpt(passage: str) -> str:
    """The beginning of a passage, its white space made plain, cut between words."""
    words = " ".join(passage[: 4 * SHOWN].split())
    return words if len(words) <= SHOWN else words[:SHOWN].rpartition(" ")[0] + " …"
