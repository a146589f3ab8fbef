"""Passages found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

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
        body = Text(excerpt(row["text"])) if "text" in row else Text("embedded with --no-text", style="dim")
        console.print(Panel(body, title=Text(title), subtitle=Text(place), title_align="left", subtitle_align="right"))


def excerpt(text: str) -> str:
    """The beginning of a passage, its white space made plain, cut between words."""
    words = " ".join(text[: 4 * SHOWN].split())
    return words if len(words) <= SHOWN else words[:SHOWN].rpartition(" ")[0] + " …"
