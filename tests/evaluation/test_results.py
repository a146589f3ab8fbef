"""What is stored, grouped, averaged and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import thalweg
from thalweg.errors import CorpusError

pytest.importorskip("mteb")
pytest.importorskip("rank_bm25")
pytest.importorskip("matplotlib")

from thalweg.evaluation.lengths import by_length, tokens
from thalweg.evaluation.models import Contestant, instructed, other_models, our_model
from thalweg.evaluation.plots import write_plots
from thalweg.evaluation.report import group_name, markdown, write_report
from thalweg.evaluation.run import Outcome, evaluate
from thalweg.evaluation.table import Mean, Score, Table, make_table
from thalweg.integrations.mteb import ThalwegEncoder
from thalweg.storage.lock import hold

from ..corpus.tiny import write_model
from .by_hand import Pairs, hand_written_tasks
from .tiny import CORPUS, QRELS

SETTINGS = {"command": "thalweg eval"}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


def notes() -> Any:
    return hand_written_tasks({})[3]


@pytest.fixture(scope="module")
def outcomes(tiny: thalweg.Embedder, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("out")
    return evaluate([our_model(tiny), *other_models(["bm25"])], hand_written_tasks({}), folder)


def test_bm25_takes_only_what_it_can(outcomes: list[Outcome]) -> None:
    assert [(o.model, o.task.metadata.name) for o in outcomes if o.model == "BM25"] == [("BM25", "HandNotes")]
    assert not [o.error for o in outcomes if o.error]


def test_groups_by_length_make_up_the_whole(outcomes: list[Outcome]) -> None:
    """Queries by the mean length of what they seek; the score of a group is the mean over its queries."""
    lengths = {row["id"]: tokens(f"{row['title']} {row['text']}".strip()) for row in CORPUS}
    assert [edge for edge in (0, 1024) if any(edge <= n < edge + 1024 for n in lengths.values())] == [0, 1024]
    result = next(o.result for o in outcomes if o.model == "tiny" and o.task.metadata.name == "HandNotes")
    assert result is not None
    groups = by_length(result.scores["test"][0])
    assert {edge: n for edge, (_, n) in groups.items()} == {0: 3, 1024: 1}
    assert sum(n for _, n in groups.values()) == len({row["query"] for row in QRELS})
    whole = sum(score * n for score, n in groups.values()) / 4
    assert whole == pytest.approx(result.get_score(), abs=1e-4)


@pytest.mark.parametrize(("text", "n"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("水" * 4, 3)])
def test_lengths_are_counted_in_bytes(text: str, n: int) -> None:
    assert tokens(text) == n


def test_a_second_run_measures_nothing(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    first = evaluate([our_model(tiny)], [notes()], tmp_path)
    again = evaluate([our_model(tiny)], [notes()], tmp_path)
    assert [first[0].stored, again[0].stored] == [False, True]
    assert Score.of(first[0]) == Score.of(again[0])
    assert not evaluate([our_model(tiny)], [notes()], tmp_path, overwrite=True)[0].stored


def test_another_model_or_other_data_are_measured(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    evaluate([our_model(tiny)], [Pairs()], tmp_path)
    other = thalweg.load(write_model(tmp_path / "tiny", seed=5))
    assert not evaluate([our_model(other)], [Pairs()], tmp_path)[0].stored
    changed = Pairs()
    changed.metadata = changed.metadata.model_copy(update={"dataset": {"path": "by hand", "revision": "2"}})
    assert not evaluate([our_model(tiny)], [changed], tmp_path)[0].stored
    for setting in ({"max_length": 7}, {"instructions": "paper"}, {"instructions": "none"}):
        assert not evaluate([our_model(tiny, **setting)], [Pairs()], tmp_path)[0].stored  # type: ignore[arg-type]


def test_a_half_written_file_is_no_result(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    """A crash leaves the file that was being written under another name."""
    evaluate([our_model(tiny)], [Pairs()], tmp_path)
    path = next(tmp_path.rglob("HandPairs.json"))
    whole = path.read_text()
    path.with_name("HandPairs.json.tmp").write_text(whole[: len(whole) // 2])
    path.unlink()
    assert not evaluate([our_model(tiny)], [Pairs()], tmp_path)[0].stored
    assert json.loads(path.read_text())["scores"] == json.loads(whole)["scores"]


def test_instructions_go_to_models_that_know_them(tmp_path: Path, tiny: thalweg.Embedder) -> None:
    told = thalweg.load(write_model(tmp_path / "tuned", prompts={"web": "Instruct: find\nQuery: "}))
    assert (instructed(told), instructed(tiny)) == (True, False)
    assert isinstance(our_model(told).load(), ThalwegEncoder)
    assert our_model(told).load().instructions is not None
    assert our_model(tiny).load().instructions is None
    assert our_model(tiny, "paper").load().instructions is not None


def table_of(models: dict[str, dict[str, float]], benchmarks: dict[str, list[str]]) -> Table:
    """Of scores that are made up."""
    outcomes = []
    for model, scores in models.items():
        for task in hand_written_tasks({}):
            name = task.metadata.name
            result = _Result(scores[name]) if name in scores else None
            outcomes.append(Outcome(model, task, result, error=None if result else "OSError: no data"))  # type: ignore[arg-type]
    return make_table(outcomes, benchmarks)


class _Result:
    evaluation_time = 1.0

    def __init__(self, score: float) -> None:
        self.scores = {"test": [{"main_score": score}]}

    def get_score(self) -> float:
        return float(self.scores["test"][0]["main_score"])


ALL = {"HandPairs": 0.9, "HandTopics": 0.5, "HandClusters": 0.3, "HandNotes": 0.7}


def test_a_mean_takes_all_tasks_of_the_benchmark() -> None:
    partly = {name: score for name, score in ALL.items() if name != "HandNotes"}
    table = table_of({"whole": ALL, "partly": partly}, {"Four": list(ALL), "Two": ["HandPairs", "HandTopics"]})
    assert [(mean.model, mean.benchmark) for mean in table.means] == [
        ("whole", "Four"),
        ("whole", "Two"),
        ("partly", "Two"),
    ]
    assert (table.means[0].over_tasks, table.means[0].over_types) == pytest.approx((60.0, 60.0))
    assert table.incomplete == {"Four": {"partly": 1}}
    page = markdown(table, SETTINGS)
    assert "| partly | 1 task missing | – | – |" in page
    assert "| partly | HandNotes | OSError: no data |" in page


def test_means_over_types_weigh_types_alike() -> None:
    twice = make_table(
        [
            Outcome("m", task, _Result(score))  # type: ignore[arg-type]
            for task, score in ((Pairs(), 0.2), (Pairs(), 0.4), (notes(), 0.9))
        ],
        {},
    )
    from thalweg.evaluation.table import _mean

    mean = _mean("m", "b", twice.scores)
    assert (mean.over_tasks, mean.over_types) == pytest.approx((50.0, 60.0))


def test_published_scores_stand_beside_measured_ones() -> None:
    table = table_of({"ours": {**ALL}}, {"MTEB(eng, v2)": list(ALL)})
    rows = {mean.model: mean for mean in table.means}
    assert rows["llama-embed-mamba2-7b"] == Mean("llama-embed-mamba2-7b", "MTEB(eng, v2)", 65.2, 61.8, True)
    assert rows["e5-mistral-7b-instruct"].over_types is None
    page = markdown(table, SETTINGS)
    assert "| ours | measured | 60.0 | 60.0 |" in page
    assert "| llama-embed-mamba2-7b | published | 65.2 | 61.8 |" in page
    assert "arXiv 2604.18199" in page
    assert not [mean for mean in table_of({"ours": ALL}, {"Four": list(ALL)}).means if mean.published]


def test_reports_and_pictures(outcomes: list[Outcome], tmp_path: Path) -> None:
    table = make_table(outcomes, {})
    plots = write_plots(tmp_path, table)
    assert sorted(path.name for path in plots) == ["score-by-document-length.png", "score-by-document-length.svg"]
    write_report(tmp_path, table, SETTINGS, plots)
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["scores"]) == 5
    assert content["versions"]["thalweg"] == thalweg.__version__
    assert (tmp_path / "results.md").read_text() == markdown(table, SETTINGS, plots)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("edge", "name"), [(0, "0–255"), (4096, "4,096–16,383"), (1048576, "from 1,048,576")])
def test_groups_have_names(edge: int, name: str) -> None:
    assert group_name(edge) == name


def test_lengths_of_tasks_and_of_splits_are_curves() -> None:
    scores = [
        Score("m", "local-needle-256", "Retrieval", "ndcg_at_1", 0.5, 1.0),
        Score("m", "local-needle-64", "Retrieval", "ndcg_at_1", 0.9, 1.0),
        Score("m", "LEMBX", "Retrieval", "ndcg_at_1", 0.4, 1.0, by_split={"test_512": 0.3, "test_256": 0.5}),
        Score("m", "Other", "Retrieval", "ndcg_at_1", 0.4, 1.0, by_split={"dev": 0.3, "test": 0.5}),
    ]
    assert Table(scores, [], {}, []).against_length() == {
        "needle": {"m": {64: 0.9, 256: 0.5}},
        "LEMBX": {"m": {256: 0.5, 512: 0.3}},
    }


def test_two_runs_do_not_share_a_folder(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(CorpusError, match="another run is writing"):
        evaluate([our_model(tiny)], [Pairs()], tmp_path)
    assert evaluate([our_model(tiny)], [Pairs()], tmp_path)[0].result


def test_texts_are_counted_as_they_are_done(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate([our_model(tiny)], [Pairs()], tmp_path, on_texts=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)] * 2


def test_a_contestant_is_made_ready_once(tiny: thalweg.Embedder, tmp_path: Path) -> None:
    made = []

    def load() -> Any:
        made.append(1)
        return ThalwegEncoder(tiny)

    evaluate([Contestant("m", load)], [Pairs(), notes()], tmp_path)
    assert made == [1]
