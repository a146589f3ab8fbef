"""What is written beside a trained model: its card, `recipe.json`, `log.jsonl` and a picture of the curves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from thalweg.training.progress_log import Entry
from thalweg.training.recipes import Recipe
from thalweg.version import __version__

PLOT_FILE = "training.png"


@dataclass(frozen=True)
class Facts:
    """Of a run that is over.

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
        """Of each dev set the steps at which it was scored, and the scores."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for entry in self.log:
            for name, score in entry.get("dev", {}).items():
                curves.setdefault(name, []).append((entry["step"], score))
        return curves

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
        ("steps", f"{last.get('step', 0):,} of {facts.recipe.batch_size:,} rows"),
        ("tokens trained on", f"{last.get('tokens', 0):,}"),
        ("loss in the last step", f"{last['loss']:.4f}" if last else "–"),
        ("texts cut to the maximum length", f"{last.get('cut', 0):,}"),
        *((f"instruction of {name}", f"`{text!r}`") for name, text in facts.instructions.items()),
    ]
    lines = ["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    lines += ["| data | source | licence | rows | weight | left out |", "|---|---|---|---|---|---|"]
    for row in facts.manifest:
        counts: Mapping[str, int] = row["counts"]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if reason not in ("read", "kept"))
        cells = (row["name"], row.get("source"), row.get("licence"), f"{row['rows']:,}", row.get("weight"), dropped)
        lines.append(f"| {' | '.join('–' if cell in (None, '') else str(cell) for cell in cells)} |")
    if facts.final_scores:
        lines += ["", "| dev set | first | last |", "|---|---|---|"]
        for name, curve in facts.scores.items():
            lines.append(f"| {name} | {curve[0][1]:.4f} | {curve[-1][1]:.4f} |")
    return [*lines, "", f"![curves]({PLOT_FILE})", ""]


def write_plot(path: Path, facts: Facts) -> None:
    """Loss, learning rate and, if there are any, scores on dev sets, against steps."""
    scores = facts.scores
    figure = Figure(figsize=(4.2 * (2 + bool(scores)), 3.4), layout="constrained")
    axes = figure.subplots(1, 2 + bool(scores), squeeze=False)[0]
    steps = [entry["step"] for entry in facts.steps]
    losses = [entry["loss"] for entry in facts.steps]
    axes[0].plot(steps, losses, color="C0", alpha=0.35, linewidth=1)
    axes[0].plot(steps, _smooth(losses), color="C0", linewidth=2)
    axes[0].set_title("loss", fontsize="medium")
    axes[1].plot(steps, [entry["learning_rate"] for entry in facts.steps], color="C1")
    axes[1].set_title("learning rate", fontsize="medium")
    for name, curve in scores.items():
        axes[2].plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
    if scores:
        axes[2].set_title("dev scores", fontsize="medium")
        axes[2].legend(frameon=False, fontsize="small")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_xlabel("step", fontsize="small")
    figure.savefig(path, dpi=150)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the run."""
    share = 2 / (max(1, len(values) / 20) + 1)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else smoothed[-1] + share * (value - smoothed[-1]))
    return smoothed
