"""Scores against length, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thalweg.evaluation.report import group_name
from thalweg.evaluation.table import Table
from thalweg.system.figures import label, look, save, tidy, token_axis

METRICS = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "hit_rate": "hit rate", "cosine_spearman": "Spearman"}
"""mteb's names of what is measured, as papers write them; others stay as they are."""


@dataclass
class Panel:
    """A task: of each model the scores (0 to 1) by length, and the lengths' names where they are groups."""

    task: str
    metric: str
    lines: dict[str, dict[int, float]]
    names: dict[int, str] = field(default_factory=dict)


def write_plots(folder: Path, table: Table) -> list[Path]:
    """PNG and SVG files of what there is to see; none where no task has several lengths."""
    written = []
    of_groups = "length of the documents sought, tokens, and the number n of queries"
    for name, axis, panels in (
        ("score-against-length", "document length, tokens", list(_lengths(table))),
        ("score-by-document-length", of_groups, list(_groups(table))),
    ):
        if panels:
            figure = _draw(panels, axis, list(table.models))
            for suffix in ("png", "svg"):
                path = folder / f"{name}.{suffix}"
                save(figure, path)
                written.append(path)
    return written


def metric_name(measure: str) -> str:
    """mteb's `ndcg_at_10` as nDCG@10."""
    kind, _, k = measure.partition("_at_")
    return METRICS.get(kind, kind) + (f"@{k}" if k else "")


def _lengths(table: Table) -> Iterator[Panel]:
    """Tasks made at several lengths."""
    for task, lines in table.against_length().items():
        measures = {score.measure for score in table.scores if score.task == task or f"-{task}-" in score.task}
        yield Panel(task, ", ".join(sorted(map(metric_name, measures))), lines)


def _groups(table: Table) -> Iterator[Panel]:
    """Tasks whose queries are grouped by the length of the documents that they seek."""
    panels: dict[str, Panel] = {}
    queries: dict[str, dict[int, int]] = {}
    for score in table.scores:
        if len(score.by_document_length) > 1:
            panel = panels.setdefault(score.task, Panel(score.task, metric_name(score.measure), {}))
            panel.lines[score.model] = {edge: value for edge, (value, _) in score.by_document_length.items()}
            queries.setdefault(score.task, {}).update({e: n for e, (_, n) in score.by_document_length.items()})
    for task, panel in panels.items():
        panel.names = {edge: f"{group_name(edge)}\nn = {n:,}" for edge, n in sorted(queries[task].items())}
        yield panel


def _draw(panels: Sequence[Panel], x_label: str, models: list[str]) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    shared = panels[0].metric if len({panel.metric for panel in panels}) == 1 else None
    handles: dict[str, Line2D] = {}
    for axis, panel in zip(axes.flat, panels, strict=False):
        handles |= _panel(axis, panel, models)
        axis.set_title(label(panel.task) if shared else f"{label(panel.task)}, {panel.metric}", fontsize="medium")
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    figure.supxlabel(x_label, fontsize="medium")
    figure.supylabel(f"{shared or 'score'} × 100", fontsize="medium")
    shown = [model for model in models if model in handles]
    figure.legend(
        [handles[model] for model in shown],
        [label(model) for model in shown],
        loc="outside upper center",
        ncols=min(3, len(shown)),
        frameon=False,
        fontsize="small",
        handlelength=4,
    )
    return figure


def _panel(axis: Axes, panel: Panel, models: list[str]) -> dict[str, Line2D]:
    """A panel's lines, by model."""
    drawn = {}
    places = {length: place for place, length in enumerate(panel.names)}  # groups stand side by side
    for model, line in panel.lines.items():
        xs = [places.get(length, length) for length in line]
        rank = models.index(model)
        (drawn[model],) = axis.plot(xs, [100 * value for value in line.values()], **look(rank, len(models)))
    if panel.names:
        axis.set_xticks(list(places.values()), list(panel.names.values()))
        axis.set_xlim(-0.3, len(places) - 0.7)
    else:
        token_axis(axis, [length for line in panel.lines.values() for length in line])
    axis.set_ylim(-4, 104)
    tidy(axis)
    return drawn
