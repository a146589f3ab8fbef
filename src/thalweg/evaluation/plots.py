"""Scores against length, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thalweg.evaluation.lengths import EDGES
from thalweg.evaluation.table import Table

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]


def write_plots(folder: Path, table: Table) -> list[Path]:
    """PNG and SVG files of what there is to see; none where no task has several lengths."""
    written = []
    for name, label, curves in (
        ("score-against-length", "document length, tokens", table.against_length()),
        ("score-by-document-length", "length of the documents sought, tokens", _groups(table)),
    ):
        if curves:
            figure = _draw(curves, label, list(table.models))
            for suffix in ("png", "svg"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    return written


def _groups(table: Table) -> Curves:
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for score in table.scores:
        if len(score.by_document_length) > 1:
            line = {edge: value for edge, (value, _) in score.by_document_length.items()}
            curves.setdefault(score.task, {})[score.model] = line
    return curves


def _draw(curves: Curves, label: str, models: list[str]) -> Figure:
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for i, (task, lines) in enumerate(curves.items()):
        _panel(axes[i // columns][i % columns], task, lines, models)
    for unused in axes.flat[len(curves) :]:
        unused.set_axis_off()
    figure.supxlabel(label, fontsize="medium")
    figure.supylabel("score × 100", fontsize="medium")
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    shown = [handles[model] for model in models if model in handles]
    figure.legend(handles=shown, loc="outside upper center", ncols=min(3, len(shown)), frameon=False, fontsize="small")
    return figure


def _panel(axis: Axes, task: str, lines: Mapping[str, Mapping[int, float]], models: list[str]) -> None:
    for model, line in lines.items():
        lengths = [max(length, EDGES[1] / 2) for length in line]
        values = [100 * value for value in line.values()]
        rank = models.index(model)
        width = 1.5 + len(models) - 1 - rank  # lines that coincide stay visible
        axis.plot(lengths, values, marker="o", markersize=2 + width, linewidth=width, color=f"C{rank}", label=model)
    axis.set_xscale("log", base=2)
    ticks = sorted({max(length, EDGES[1] // 2) for line in lines.values() for length in line})
    axis.set_xticks(ticks, [_short(tick) for tick in ticks], fontsize="small")
    axis.minorticks_off()
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.25)
    axis.set_title(task, fontsize="medium")


def _short(tokens: int) -> str:
    if tokens < EDGES[1]:
        return f"< {EDGES[1]}"
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)
