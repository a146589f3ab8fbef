"""The picture, the card and the learning rate of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from thalweg.training.recipes import tiny
from thalweg.training.report import Facts, edit_card, write_plot
from thalweg.training.trainer import rate_factor


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (1, 2), (5, 20), (100, 101)])
def test_no_step_runs_at_rate_0(warmup: int, total: int) -> None:
    rates = [rate_factor(step, warmup=warmup, total=total) for step in range(total)]
    assert min(rates) > 0
    assert max(rates) == rates[warmup] == 1
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rate_factor(total, warmup=warmup, total=total) == 0


def facts(dev: dict[str, str], n: int = 40) -> Facts:
    log: list[dict[str, Any]] = []
    for step in range(n + 1):
        if step % 10 == 0:
            log.append({"step": step, "dev": dict.fromkeys(dev, 0.5 + step / 100), "metric": dev})
        if step:
            log.append({"step": step, "loss": 3 - step / n, "learning_rate": 1e-3, "tokens": step, "cut": 0})
    return Facts("base", tiny(), [], {}, log, 1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **settings: Any) -> None:
        figures.append(self)
        save(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_each_metric_has_a_panel_of_its_own(drawn: list[Figure], tmp_path: Path) -> None:
    names = {"sts": "Spearman", "_$a$_": "Spearman", "pairs": "nDCG@10"}
    write_plot(tmp_path / "training.png", facts(names))
    (figure,) = drawn
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert list(panels) == [
        *("training loss, contrastive", "learning rate", "dev sets, Spearman", "dev sets, nDCG@10"),
    ]
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "learning rate", "Spearman", "nDCG@10"]
    assert all(axis.get_xlabel() == "step" for axis in figure.axes)
    spearman, ndcg = (panels[f"dev sets, {metric}"] for metric in ("Spearman", "nDCG@10"))
    assert [text.get_text().strip() for text in spearman.get_legend().get_texts()] == ["sts", r"_\$a\$_"]
    assert len(ndcg.get_lines()) == 1
    first, second = spearman.get_lines()  # with the same scores: one is seen through the other
    assert first.get_linewidth() > second.get_linewidth()
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()


@pytest.mark.parametrize("n", [1, 40])
def test_a_run_without_dev_sets(drawn: list[Figure], tmp_path: Path, n: int) -> None:
    write_plot(tmp_path / "training.png", facts({}, n))
    (figure,) = drawn
    assert [axis.get_title() for axis in figure.axes] == ["training loss, contrastive", "learning rate"]


def test_the_card_names_metrics_and_holds_any_name() -> None:
    card = edit_card("# base\n\n## Origin\n", "tuned", facts({"a|b": "Spearman", "pairs": "nDCG@10"}))
    assert "| dev set | metric | before | after |" in card
    assert "| a\\|b | Spearman | 0.5000 | 0.9000 |" in card
    assert "| pairs | nDCG@10 | 0.5000 | 0.9000 |" in card
