"""What `thalweg embed` says of the input, in whole lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.corpus import Summary


def input_lines(summary: Summary) -> list[str]:
    """What was read, what was left out, and what had to be found out or told apart."""
    lines = list(summary.notes)
    if any("not UTF-8" in told.reason for told in summary.shown):
        lines.append("what is in another encoding than UTF-8 can be read with --encoding NAME")
    if summary.n_notes > len(summary.notes):
        lines.append(f"and {counted(summary.n_notes - len(summary.notes), 'note')} of this kind more")
    if summary.remade:
        lines.append(f"damaged, and made again: {', '.join(summary.remade)}")
    if summary.repeated:
        ids = ", ".join(map(repr, summary.repeated_ids))
        lines.append(
            f"{counted(summary.repeated, 'document')} with the id of an earlier one ({ids}): "
            "the column key tells them apart"
        )
    files = summary.files
    if files.seen:
        became = [f"{files.read:,} read"]
        became += [f"{n:,} {what}" for n, what in ((files.empty, "empty"), (files.failed, "failed")) if n]
        left_out = files.left_out.total()
        if left_out:
            became.append(f"{left_out:,} left out ({kinds(files.left_out)})")
        hint = "; take others with --glob" if any(kind.startswith(".") for kind in files.left_out) else ""
        lines.append(f"{counted(files.seen, 'file')}: {', '.join(became)}{hint}")
    if summary.table_rows:
        failed = f", {summary.table_rows_failed:,} of them failed" if summary.table_rows_failed else ""
        lines.append(f"{counted(summary.table_rows, 'row')} of tables{failed}")
    return lines


def kinds(left_out: Mapping[str, int]) -> str:
    """4 .py, 2 .pdf, 3 hidden: suffixes first, the most frequent of them before the others."""
    ordered = sorted(left_out.items(), key=lambda each: (not each[0].startswith("."), -each[1], each[0]))
    return ", ".join(f"{n:,} {kind}" for kind, n in ordered)
