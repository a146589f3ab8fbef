"""The pictures of scores against length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from thalweg.evaluation.plots import metric_name, write_plots
from thalweg.evaluation.table import Score, Table


def score(model: str, task: str, groups: dict[int, tuple[float, int]] | None = None, **more: Any) -> Score:
    return Score(model, task, "Retrieval", more.pop("measure", "ndcg_at_10"), 0.5, 1.0, groups or {}, **more)


def test_groups_are_named_by_both_ends_and_their_queries(figures: list[Figure], tmp_path: Path) -> None:
    groups = {0: (0.4, 71), 256: (0.2, 5), 1048576: (0.1, 2)}
    write_plots(tmp_path, Table([score("a", "task", groups), score("b", "task", groups)], [], {}, []))
    (figure,) = figures
    (axis,) = figure.axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        *("0–255\nn = 71", "256–1,023\nn = 5", "from 1,048,576\nn = 2")
    ]
    assert figure.get_supylabel() == "nDCG@10 × 100"
    assert figure.get_supxlabel() == "length of the documents sought, tokens, and the number n of queries"
    first, second = axis.get_lines()  # with the same scores
    assert first.get_linewidth() > second.get_linewidth()
    assert (first.get_color(), first.get_marker()) != (second.get_color(), second.get_marker())


def test_lengths_are_drawn_to_scale(figures: list[Figure], tmp_path: Path) -> None:
    scores = [score("a", f"local-needle-{length}", measure="ndcg_at_1") for length in (256, 1024, 32768)]
    write_plots(tmp_path, Table(scores, [], {}, []))
    (axis,) = figures[0].axes
    assert axis.get_xscale() == "log"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["256", "1k", "32k"]
    assert figures[0].get_supylabel() == "nDCG@1 × 100"


def test_panels_with_different_metrics_name_their_own(figures: list[Figure], tmp_path: Path) -> None:
    groups = {0: (0.4, 71), 256: (0.2, 5)}
    scores = [score("a", "one", groups), score("a", "two", groups, measure="map_at_100")]
    write_plots(tmp_path, Table(scores, [], {}, []))
    assert [axis.get_title() for axis in figures[0].axes] == ["one, nDCG@10", "two, MAP@100"]
    assert figures[0].get_supylabel() == "score × 100"


def test_any_model_and_task_is_in_the_legend(figures: list[Figure], tmp_path: Path) -> None:
    groups = {0: (0.4, 71), 256: (0.2, 5)}
    names = ["_private", "$x$", "plain", "\x1b[2J"]
    write_plots(tmp_path, Table([score(name, "_$task$", groups) for name in names], [], {}, []))
    (figure,) = figures
    assert len(figure.legends[0].get_texts()) == len(names)
    assert "\x1b" not in (tmp_path / "score-by-document-length.svg").read_text()


def test_metrics_have_the_names_of_papers() -> None:
    assert [metric_name(name) for name in ("ndcg_at_10", "map_at_100", "cosine_spearman", "accuracy", "x_at_y")] == [
        *("nDCG@10", "MAP@100", "Spearman", "accuracy", "x@y")
    ]
