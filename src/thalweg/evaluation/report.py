"""A run as Markdown and JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thalweg.evaluation.lengths import BYTES_PER_TOKEN, EDGES
from thalweg.evaluation.table import Table, published_source
from thalweg.storage.durable import write_durably
from thalweg.system.words import counted
from thalweg.version import __version__

PACKAGES = ("mteb", "torch", "numpy", "scikit-learn", "scipy", "sentence-transformers", "rank-bm25")


def write_report(folder: Path, table: Table, settings: Mapping[str, Any], plots: Sequence[Path] = ()) -> None:
    """Write `results.json` and `results.md`, each whole or not at all."""
    content = {"settings": dict(settings), "versions": versions(), "machine": platform.platform(), **table.as_dict()}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_durably(folder / "results.json", lambda stream: stream.write(text.encode()))
    page = markdown(table, settings, plots)
    write_durably(folder / "results.md", lambda stream: stream.write(page.encode()))


def versions() -> dict[str, str]:
    """The versions of what takes part in a measurement."""
    installed = {name: version(name) for name in PACKAGES}
    return {"thalweg": __version__, "python": platform.python_version(), **installed}


def markdown(table: Table, settings: Mapping[str, Any], plots: Sequence[Path] = ()) -> str:
    """The whole page."""
    return "\n".join(
        [*_head(settings), *_means(table), *_scores(table), *_lengths(table), *_failures(table), *_plots(plots)]
    )


def _head(settings: Mapping[str, Any]) -> Iterator[str]:
    yield "# Evaluation\n"
    yield f"`{settings['command']}`\n"
    yield ", ".join(f"{name} {number}" for name, number in versions().items()) + f"; {platform.platform()}.\n"


def _means(table: Table) -> Iterator[str]:
    for benchmark in dict.fromkeys([mean.benchmark for mean in table.means] + list(table.incomplete)):
        yield f"## {benchmark}\n"
        rows = [
            [
                mean.model,
                "published" if mean.published else "measured",
                _number(mean.over_tasks),
                _number(mean.over_types),
            ]
            for mean in table.means
            if mean.benchmark == benchmark
        ]
        for model, missing in table.incomplete.get(benchmark, {}).items():
            rows.append([model, f"{counted(missing, 'task')} missing", "–", "–"])
        yield from _grid(["model", "", "mean over tasks", "mean over task types"], rows)
        if any(mean.published for mean in table.means if mean.benchmark == benchmark):
            yield f"Published: {published_source()}\n"


def _scores(table: Table) -> Iterator[str]:
    if not table.scores:
        return
    yield "## Tasks\n"
    if any(task.startswith("local-") for task in table.tasks):
        yield "Tasks called `local-…` are scored by mteb's code on local files. They belong to no benchmark.\n"
    rows = []
    for task in table.tasks:
        scores = [table.score(model, task) for model in table.models]
        measure = next(score.measure for score in scores if score)
        rows.append([task, f"`{measure}`", *(_number(100 * score.score) if score else "–" for score in scores)])
    yield from _grid(["task", "× 100", *table.models], rows)


def _lengths(table: Table) -> Iterator[str]:
    tasks = [task for task in table.tasks if any(s.by_document_length for s in table.scores if s.task == task)]
    if not tasks:
        return
    yield "## By document length\n"
    yield (
        "The same queries, grouped by the length of the documents they seek, "
        f"in tokens of {BYTES_PER_TOKEN} bytes; × 100, and the number of queries.\n"
    )
    rows = []
    for task in tasks:
        scores = [score for score in table.scores if score.task == task]
        for edge in sorted({edge for score in scores for edge in score.by_document_length}):
            groups = {
                score.model: score.by_document_length[edge] for score in scores if edge in score.by_document_length
            }
            queries = next(iter(groups.values()))[1]
            cells = (_number(100 * groups[model][0]) if model in groups else "–" for model in table.models)
            rows.append([task, group_name(edge), f"{queries:,}", *cells])
    yield from _grid(["task", "tokens", "queries", *table.models], rows)


def group_name(edge: int) -> str:
    """The lengths of a group, by its first."""
    end = next((later for later in EDGES if later > edge), None)
    return f"from {edge:,}" if end is None else f"{edge:,}–{end - 1:,}"


def _failures(table: Table) -> Iterator[str]:
    if table.failures:
        yield "## Not measured\n"
        yield from _grid(["model", "task", "why"], [[f["model"], f["task"], f["error"]] for f in table.failures])


def _plots(plots: Sequence[Path]) -> Iterator[str]:
    for path in plots:
        if path.suffix == ".png":
            yield f"![{path.stem.replace('-', ' ')}]({path.name})\n"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
