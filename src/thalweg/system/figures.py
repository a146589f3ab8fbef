"""What the pictures share: names of others shown as they are, lines that can be told apart, axes that can be read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thalweg.system.terminal import safe_text

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5195")
"""Okabe and Ito's colours, which people who cannot tell red from green tell apart, and one more."""

MARKERS = "osD^vPX*"

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))

LONGEST = 48
"""Characters of a name in a picture; its middle is left out beyond."""


def label(name: str) -> str:
    """A name as it is: matplotlib would take dollars for formulas, and leave out what begins with an underscore."""
    shown = safe_text(" ".join(name.split()))
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]}…{shown[-LONGEST // 2 + 1 :]}"
    shown = shown.replace("$", r"\$")
    return f"\N{THIN SPACE}{shown}" if shown.startswith("_") else shown


def look(rank: int, of: int) -> dict[str, Any]:
    """How the line of a rank is drawn, among so many: another colour, marker and dashes for each, and the later ones
    thinner and with hollow markers, so that of lines that lie on each other all are seen."""
    width = 1.3 + 0.9 * (min(of, 4) - 1 - min(rank, min(of, 4) - 1))
    return {
        "color": PALETTE[rank % len(PALETTE)],
        "linestyle": _DASHES[(rank + rank // len(PALETTE)) % len(_DASHES)],
        "linewidth": width,
        "marker": MARKERS[rank % len(MARKERS)],
        "markersize": 3.5 + 1.5 * width,
        "markerfacecolor": "none",
        "markeredgewidth": 1.2,
        "alpha": 0.9,
    }


def tidy(axis: Any) -> None:
    """No box around a panel, and a grid that stays behind the lines."""
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize="small")


def save(figure: Any, path: Path) -> None:
    """Write a PNG or SVG. A name in a script that the font lacks has boxes in it, which is no news to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def tokens(n: int) -> str:
    """A number of tokens on an axis: 512, 16k (16,384) or 1M (1,048,576)."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return f"{n:,}"


def token_axis(axis: Any, lengths: Sequence[int]) -> None:
    """A logarithmic axis of tokens with a tick at each length, as far as there is room."""
    axis.set_xscale("log", base=2)
    ticks = sorted(set(lengths))
    axis.set_xticks(ticks[:: max(1, -(-len(ticks) // 8))])
    axis.set_xticklabels([tokens(tick) for tick in ticks[:: max(1, -(-len(ticks) // 8))]])
    axis.minorticks_off()
