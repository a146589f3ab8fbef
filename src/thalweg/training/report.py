"""What is written beside a trained model: its card, `recipe.json`, `log.jsonl` and a picture of the curves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thalweg.system.figures import PALETTE, label, look, save, tidy
from thalweg.system.words import counted
from thalweg.training.progress_log import Entry
from thalweg.training.recipes import Recipe
from thalweg.version import __version__

PLOT_FILE = "training.png"


@dataclass(frozen=True)
class Facts:
    """What is known of a run that is over.

    base: the model it began with; manifest: a row for each data set; instructions: before queries, by data set; log:
    all entries; n_processes: that shared the batches.
    """

    base: str
    recipe: Recipe
    manifest: Sequence[Mapping[str, Any]]
    instructions: Mapping[str, str]
    log: Sequence[Entry]
    n_processes: int

    @property
    def steps(self) -> Sequence[Entry]:
        """Entries with a loss."""
        return [entry for entry in self.log if "loss" in entry]

    @property
    def scores(self) -> dict[str, list[tuple[int, float]]]:
        """The steps at which each dev set was scored, and the scores."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for entry in self.log:
            for name, score in entry.get("dev", {}).items():
                curves.setdefault(name, []).append((entry["step"], score))
        return curves

    @property
    def metric(self) -> dict[str, str]:
        """What the scores of each dev set are."""
        return {name: metric for entry in self.log for name, metric in entry.get("metric", {}).items()}

    @property
    def final_scores(self) -> dict[str, float]:
        return {name: curve[-1][1] for name, curve in self.scores.items()}

    def recipe_json(self) -> str:
        """What a run can be repeated from: `--recipe FILE` reads it."""
        written = {
            "recipe": self.recipe.to_json(),
            "model": self.base,
            "data": [dict(row) for row in self.manifest],
            "instructions": dict(self.instructions),
            "processes": self.n_processes,
            "thalweg": __version__,
        }
        return json.dumps(written, indent=2) + "\n"


def edit_card(card: str, name: str, facts: Facts) -> str:
    """The card of an exported model as that of a trained one: another name, and a section on the training."""
    card = re.sub(r"^# .*$", f"# {name}", card, count=1, flags=re.MULTILINE)
    card = re.sub(
        r"^Written by `thalweg export` \S+ from `(.*)`\.",
        rf"Trained by `thalweg train` {__version__} from `\1`; the training data's licences are stated above.",
        card,
        count=1,
        flags=re.MULTILINE,
    )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base) and not re.search(r"^base_model:", card, re.MULTILINE):
        card = card.replace("---\n", f"---\nbase_model: {facts.base}\n", 1)
    return card.replace("\n## Origin\n", "\n" + "\n".join(_training(facts)) + "\n## Origin\n", 1)


def _training(facts: Facts) -> list[str]:
    last = facts.steps[-1] if facts.steps else {}
    rows = [
        ("recipe", f"`{facts.recipe.name}`, in `recipe.json`"),
        ("steps", f"{last.get('step', 0):,} of {counted(facts.recipe.batch_size, 'row')}"),
        ("tokens trained on", f"{last.get('tokens', 0):,}"),
        ("loss in the last step", f"{last['loss']:.4f}" if last else "–"),
        ("texts cut to the maximum length", f"{last.get('cut', 0):,}"),
        *((f"instruction of {name}", f"`{text!r}`") for name, text in facts.instructions.items()),
    ]
    lines = ["## Training", "", "| | |", "|---|---|", *(_cells(row) for row in rows), ""]
    lines += ["| data | source | licence | rows | weight | left out |", "|---|---|---|---|---|---|"]
    for row in facts.manifest:
        counts: Mapping[str, int] = row["counts"]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if reason not in ("read", "kept"))
        lines.append(
            _cells([row["name"], row.get("source"), row.get("licence"), f"{row['rows']:,}", row.get("weight"), dropped])
        )
    if facts.final_scores:
        lines += ["", "| dev set | metric | before | after |", "|---|---|---|---|"]
        for name, curve in facts.scores.items():
            lines.append(_cells([name, facts.metric[name], f"{curve[0][1]:.4f}", f"{curve[-1][1]:.4f}"]))
    return [*lines, "", f"![curves]({PLOT_FILE})", ""]


def _cells(values: Sequence[Any]) -> str:
    """A row of a table; names of data sets may hold what ends a cell."""
    shown = ("–" if value in (None, "") else " ".join(str(value).split()).replace("|", "\\|") for value in values)
    return f"| {' | '.join(shown)} |"


def write_plot(path: Path, facts: Facts) -> None:
    """Loss, learning rate and, if there are any, scores on dev sets against steps: a panel for each metric."""
    metrics = list(dict.fromkeys(facts.metric.values()))
    panels = 2 + len(metrics)
    columns = panels if panels <= 3 else 2
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    steps = [entry["step"] for entry in facts.steps]
    losses = [entry["loss"] for entry in facts.steps]
    last = max(steps, default=1)
    few = len(steps) <= 30
    each: Any = {"marker": "o", "markersize": 3} if few else {"alpha": 0.4}
    axes[0].plot(steps, losses, color=PALETTE[0], linewidth=1, label="each step", **each)
    if not few:
        axes[0].plot(steps, _smooth(losses), color=PALETTE[0], linewidth=2, label="running mean")
    axes[0].set(title=f"training loss, {facts.recipe.objective}", ylabel="loss")
    axes[0].legend(frameon=False, fontsize="small")
    axes[1].plot(steps, [entry["learning_rate"] for entry in facts.steps], color=PALETTE[1], **each | {"alpha": 1})
    axes[1].set(title="learning rate", ylabel="learning rate", ylim=(0, None))
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    for axis, metric in zip(axes[2:], metrics, strict=False):
        curves = {name: curve for name, curve in facts.scores.items() if facts.metric[name] == metric}
        for rank, (name, curve) in enumerate(curves.items()):
            axis.plot(*zip(*curve, strict=True), label=label(name), **look(rank, len(curves)))
        axis.set(title=f"dev sets, {metric}", ylabel=metric)
        axis.legend(frameon=False, fontsize="small")
    for axis in axes[:panels]:
        tidy(axis)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="step", xlim=(-0.03 * last, 1.03 * last))
        axis.title.set_fontsize("medium")
    for unused in axes[panels:]:
        unused.set_axis_off()
    save(figure, path)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the run."""
    share = 2 / (max(1, len(values) / 20) + 1)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else smoothed[-1] + share * (value - smoothed[-1]))
    return smoothed
