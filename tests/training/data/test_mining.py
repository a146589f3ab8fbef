"""Hard negatives: held against all products at once and against sentence-transformers; masks, rules, crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import thalweg
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.storage.lock import hold
from thalweg.training.data import Rule, load_training_data, mine_hard_negatives
from thalweg.training.data.mining import run, vectors
from thalweg.training.data.mining.neighbours import Neighbours, nearest
from thalweg.training.data.mining.rule import choose
from thalweg.training.data.mining.vectors import Block

from ...corpus.tiny import make_text, write_model
from .tables import Row, write_rows


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", n_layers=1)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> thalweg.Embedder:
    return thalweg.load(model_folder)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small data has many blocks."""
    monkeypatch.setattr(run, "ROWS", 16)
    monkeypatch.setattr(vectors, "BLOCK", 10)


def some_pairs(n: int) -> list[Row]:
    return [{"query": make_text(5, seed=i), "positive": make_text(9, seed=1000 + i)} for i in range(n)]


def read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_hand(model: Any, rows: Sequence[Row], corpus: Sequence[str] = ()) -> list[list[tuple[str, float]]]:
    """For each row all texts that are not its positive, nearest first, with their scores: all products at once."""
    texts = list(dict.fromkeys([*(row["positive"] for row in rows), *corpus]))
    queries = model.encode([row["query"] for row in rows], normalize_embeddings=True)
    scores = queries @ model.encode(texts, normalize_embeddings=True).T
    ranked = []
    for row, line in zip(rows, scores, strict=True):
        order = np.argsort(-line)
        ranked.append([(texts[i], float(line[i])) for i in order if texts[i] != row["positive"]])
    return ranked


@pytest.mark.parametrize("k", [1, 7, 60])
def test_nearest_equals_all_products_at_once(k: int) -> None:
    draw = np.random.default_rng(k)
    queries, documents = draw.standard_normal((13, 8), np.float32), draw.standard_normal((47, 8), np.float32)
    masked = np.repeat(np.arange(13), 5), draw.integers(0, 47, 13 * 5)
    scores = queries @ documents.T
    scores[masked] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :k]
    for size in (1, 10, 47, 100):
        blocks = [Block(begin, documents[begin : begin + size]) for begin in range(0, 47, size)]
        found = nearest(queries, blocks, k, masked)
        assert found.documents.shape == (13, k)
        there = np.isfinite(found.scores)
        assert (there.sum(axis=1) == np.minimum(np.isfinite(scores).sum(axis=1), k)).all()
        assert (found.documents[:, : expected.shape[1]] == expected)[there[:, : expected.shape[1]]].all()
        assert (found.documents[~there] == -1).all()
        expected_scores = np.take_along_axis(scores, np.maximum(found.documents, 0), axis=1)
        np.testing.assert_allclose(found.scores[there], expected_scores[there], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_default_is_a_random_one_of_the_ten_nearest(tmp_path: Path, model: Any, suffix: str) -> None:
    rows = some_pairs(50)
    out = tmp_path / f"mined.{suffix}"
    mined = mine_hard_negatives(str(write_rows(tmp_path / "pairs.jsonl", rows)), out, model)
    assert (mined.rows, mined.negatives, mined.queries, mined.documents, mined.without) == (50, 50, 50, 50, 0)
    found = read(out)
    ranks = []
    for row, got, ranked in zip(rows, found, by_hand(model, rows), strict=True):
        assert (got["query"], got["positive"]) == (row["query"], row["positive"])
        names = [text for text, _ in ranked]
        ranks.append(names.index(got["negatives"][0]))
        assert got["negative_scores"][0] == pytest.approx(ranked[ranks[-1]][1], abs=1e-5)
    assert max(ranks) < 10
    assert len(set(ranks)) > 5
    assert not out.with_name(f"{out.name}.parts").exists()
    data = load_training_data([str(out)])
    assert data.counts == {"mined": {"read": 50, "kept": 50}}
    assert data.datasets["mined"].column_names == ["anchor", "positive", "negative_1"]


def test_the_draws_follow_the_seed(tmp_path: Path, model: Any) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(50)))
    texts = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mine_hard_negatives(data, tmp_path / f"{name}.jsonl", model, Rule(seed=seed))
        texts[name] = (tmp_path / f"{name}.jsonl").read_bytes()
    assert texts["a"] == texts["b"] != texts["c"]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(3, 0, 3, strategy="top"),
        Rule(2, 5, 9, strategy="top"),
        Rule(4, 2, 30, margin=0.01, strategy="top"),
        Rule(4, 2, 30, relative_margin=0.02, strategy="top"),
    ],
)
def test_ranks_and_margins(tmp_path: Path, model: Any, rule: Rule) -> None:
    rows = some_pairs(40)
    out = tmp_path / "mined.jsonl"
    mined = mine_hard_negatives(str(write_rows(tmp_path / "pairs.jsonl", rows)), out, model, rule)
    positive = (
        model.encode([row["query"] for row in rows], normalize_embeddings=True)
        * model.encode([row["positive"] for row in rows], normalize_embeddings=True)
    ).sum(axis=1)
    n = without = 0
    for got, ranked, score in zip(read(out), by_hand(model, rows), positive, strict=True):
        limit = np.inf
        if rule.margin is not None:
            limit = score - rule.margin
        if rule.relative_margin is not None:
            limit = score - abs(score) * rule.relative_margin
        expected = [text for text, each in ranked[rule.range_min : rule.range_max] if each <= limit][: rule.n]
        assert got["negatives"] == expected
        assert got["positive_score"] == pytest.approx(float(score), abs=1e-5)
        n += len(expected)
        without += not expected
    assert (mined.negatives, mined.without) == (n, without)
    if rule.margin or rule.relative_margin:
        assert 0 < n < 40 * rule.n  # the margin takes some away, and not all


def test_equal_to_sentence_transformers(tmp_path: Path, model_folder: Path, model: Any) -> None:
    """Its function with the same rule, on the same vectors."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as theirs

    from thalweg.integrations.sentence_transformers import load

    rows = some_pairs(30)
    peer = load(model_folder, device="cpu")
    dataset = Dataset.from_list(rows)
    expected = theirs(dataset, peer, range_min=2, range_max=8, num_negatives=3, output_format="n-tuple", verbose=False)
    data = str(write_rows(tmp_path / "pairs.parquet", rows))
    for name, embedder in (("a", model), ("b", peer)):
        out = tmp_path / f"{name}.parquet"
        mine_hard_negatives(data, out, embedder, Rule(3, 2, 8, strategy="top"))
        got = {row["query"]: row["negatives"] for row in read(out)}
        assert got == {row["query"]: [row["negative_1"], row["negative_2"], row["negative_3"]] for row in expected}


def test_false_negatives_are_never_taken(tmp_path: Path, model: Any) -> None:
    rows = [
        {"query": "Which bridge?", "positive": "The old one"},
        {"query": "which  bridge?", "positive": "The stone one"},
        {"query": "What broke?", "positive": "THE OLD  ONE"},
        {"query": "Where?", "positive": "Which Bridge?"},
        {"query": "Where?", "positive": "At the mill"},
    ]
    out = tmp_path / "mined.jsonl"
    mined = mine_hard_negatives(
        str(write_rows(tmp_path / "pairs.jsonl", rows)), out, model, Rule(4, 0, 4, strategy="top")
    )
    assert mined.documents == 4  # "The old one" is there in two forms
    found = [set(row["negatives"]) for row in read(out)]
    old, stone, bridge, mill = "The old one", "The stone one", "Which Bridge?", "At the mill"
    assert found == [{mill}, {mill}, {stone, bridge, mill}, {old, stone}, {old, stone}]


def test_rows_without_a_negative_are_kept(tmp_path: Path, model: Any) -> None:
    rows = some_pairs(20)
    out = tmp_path / "mined.parquet"
    data = str(write_rows(tmp_path / "pairs.jsonl", rows))
    mined = mine_hard_negatives(data, out, model, Rule(margin=3.0))
    assert (mined.rows, mined.negatives, mined.without) == (20, 0, 20)
    assert [row["negatives"] for row in read(out)] == [[]] * 20
    assert load_training_data([str(out)]).counts == {"mined": {"read": 20, "kept": 20}}


def test_a_corpus_is_searched_too(tmp_path: Path, model: Any) -> None:
    rows = some_pairs(12)
    texts = [make_text(8, seed=5000 + i) for i in range(25)]
    passages = [{"text": text} for text in texts[:12]] + [{"title": "", "text": text} for text in texts[12:]]
    corpus = write_rows(tmp_path / "corpus.jsonl.gz", [*passages, {"text": " "}, {"text": rows[0]["positive"]}])
    out = tmp_path / "mined.jsonl"
    mined = mine_hard_negatives(
        str(write_rows(tmp_path / "pairs.jsonl", rows)),
        out,
        model,
        Rule(6, 0, 6, strategy="top"),
        corpus=str(corpus),
    )
    assert mined.documents == 12 + 25
    for got, ranked in zip(read(out), by_hand(model, rows, texts), strict=True):
        assert got["negatives"] == [text for text, _ in ranked[:6]]


def test_instructions_go_before_queries_only_and_stay_a_column(tmp_path: Path, model: Any) -> None:
    rows = [{"instruction": f"Do {i % 2}", **row, "negative": ""} for i, row in enumerate(some_pairs(20))]
    rows[3]["negative"] = "an old one"
    out = tmp_path / "mined.parquet"
    data = str(write_rows(tmp_path / "pairs.jsonl", rows))
    mined = mine_hard_negatives(data, out, model, Rule(2, 0, 2, strategy="top"))
    assert (mined.rows, mined.replaced) == (20, 1)
    prompted = [row | {"query": f"Instruct: {row['instruction']}\nQuery: {row['query']}"} for row in rows]
    for row, got, ranked in zip(rows, read(out), by_hand(model, prompted), strict=True):
        assert got["negatives"] == [text for text, _ in ranked[:2]]
        assert (got["instruction"], got["query"]) == (row["instruction"], row["query"])
    prompts = {"query_prompt": "ask: ", "document_prompt": "told: "}
    mine_hard_negatives(data, out, model, Rule(2, 0, 2, strategy="top"), mode="overwrite", **prompts)
    prompted = [{"query": f"ask: {row['query']}", "positive": f"told: {row['positive']}"} for row in rows]
    for got, ranked in zip(read(out), by_hand(model, prompted), strict=True):
        assert got["negatives"] == [text.removeprefix("told: ") for text, _ in ranked[:2]]


def test_the_models_own_prompts(tmp_path: Path) -> None:
    prompted = thalweg.load(write_model(tmp_path / "m", n_layers=1, prompts={"query": "q: ", "passage": "p: "}))
    rows = some_pairs(15)
    out = tmp_path / "mined.jsonl"
    mine_hard_negatives(str(write_rows(tmp_path / "pairs.jsonl", rows)), out, prompted, Rule(2, 0, 2, strategy="top"))
    expected = by_hand(prompted, [{"query": f"q: {r['query']}", "positive": f"p: {r['positive']}"} for r in rows])
    for got, ranked in zip(read(out), expected, strict=True):
        assert got["negatives"] == [text.removeprefix("p: ") for text, _ in ranked[:2]]


class Killed(BaseException):
    """Ends a run as nothing else does."""


class Dying:
    """A model that is killed at its n-th call, and counts the texts that it has embedded."""

    def __init__(self, model: thalweg.Embedder, dies_at: int | None) -> None:
        self._encode, self.calls, self.texts, self._dies_at = model.encode, 0, 0, dies_at

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._dies_at:
            raise Killed
        self.texts += len(texts)
        return self._encode(texts, **options)


def test_a_run_broken_off_anywhere_goes_on(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(45)))
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    mine_hard_negatives(data, whole, model)
    texts = 0
    for dies_at in (1, 3, 4, None):  # 5 blocks of queries, then 5 of documents
        dying = Dying(model, dies_at)
        monkeypatch.setattr(model, "encode", dying)
        if dies_at is None:
            mine_hard_negatives(data, out, model, mode="resume")
        else:
            with pytest.raises(Killed):
                mine_hard_negatives(data, out, model, mode="resume")
            assert not out.exists()
        texts += dying.texts
        monkeypatch.undo()
        monkeypatch.setattr(run, "ROWS", 16)
        monkeypatch.setattr(vectors, "BLOCK", 10)
    assert texts == 90  # nothing twice
    assert read(out) == read(whole)


def test_a_run_killed_while_it_searches_goes_on(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(45)))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    mine_hard_negatives(data, whole, model)

    def die(status: run.MiningStatus) -> None:
        if status.stage == "rows" and status.done == 32:
            raise Killed

    with pytest.raises(Killed):
        mine_hard_negatives(data, out, model, on_status=die)
    searched: list[int] = []
    search = run._Run._search
    monkeypatch.setattr(run._Run, "_search", lambda self, *a: (searched.append(a[-2]), search(self, *a))[1])
    mine_hard_negatives(data, out, model, mode="resume")
    assert searched == [32]
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["queries-*", "documents-*", "found-*", "corpus.arrow", "corpus.hashes"])
def test_a_saved_file_that_the_disk_has_changed_is_made_again_and_named(tmp_path: Path, model: Any, name: str) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(45)))
    corpus = str(write_rows(tmp_path / "more.jsonl", [{"text": make_text(9, i)} for i in range(30)]))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    mine_hard_negatives(data, whole, model, corpus=corpus)

    def die(status: run.MiningStatus) -> None:
        if status.stage == "rows" and status.done == 32:
            raise Killed

    with pytest.raises(Killed):
        mine_hard_negatives(data, out, model, corpus=corpus, on_status=die)
    damaged = sorted(out.with_name("out.jsonl.parts").glob(name))[-1]
    content = bytearray(damaged.read_bytes())
    content[-7] ^= 1
    damaged.write_bytes(content)
    mined = mine_hard_negatives(data, out, model, corpus=corpus, mode="resume")
    assert mined.remade == ("corpus.arrow" if "corpus" in name else damaged.name,)
    assert out.read_bytes() == whole.read_bytes()


def test_an_output_that_is_a_link_or_in_use_is_refused(tmp_path: Path, model: Any) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(5)))
    (tmp_path / "out.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(CorpusError, match=r"out.jsonl is a link to 'nowhere.jsonl'"):
        mine_hard_negatives(data, tmp_path / "out.jsonl", model, mode="overwrite")
    (tmp_path / "o\udce9").mkdir()
    with pytest.raises(CorpusError, match=r"o\\xe9/out.jsonl: a name that is not UTF-8 cannot be written to"):
        mine_hard_negatives(data, tmp_path / "o\udce9" / "out.jsonl", model)
    for mode in ("new", "resume", "overwrite"):
        with hold(tmp_path / "free.jsonl.parts"), pytest.raises(CorpusError, match=r"is writing to .* now \(process"):
            mine_hard_negatives(data, tmp_path / "free.jsonl", model, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("characters", [0, 100, 2000])
def test_rows_are_written_by_the_size_of_their_texts(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(45)))
    mine_hard_negatives(data, tmp_path / "whole.parquet", model)
    monkeypatch.setattr("thalweg.training.data.mining.output._GROUP_CHARACTERS", characters)
    mine_hard_negatives(data, tmp_path / "out.parquet", model)
    assert read(tmp_path / "out.parquet") == read(tmp_path / "whole.parquet")


def test_links_that_lead_to_themselves_are_named(tmp_path: Path, model: Any) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    with pytest.raises((CorpusError, OSError), match=r"loop\.jsonl"):
        mine_hard_negatives(str(loop), tmp_path / "out.jsonl", model)
    with pytest.raises((CorpusError, OSError), match=r"loop\.jsonl"):
        mine_hard_negatives(str(tmp_path), tmp_path / "out.jsonl", model)


KILL = """
import os, signal, sys
import datasets, thalweg
from thalweg.training.data import mine_hard_negatives
from thalweg.training.data.mining import run, vectors
run.ROWS, vectors.BLOCK = 16, 10
data, out, model, cache, *stages = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
def on_status(status):
    if stages and status.stage == stages[0] and status.done >= 32:
        os.kill(os.getpid(), signal.SIGKILL)
mine_hard_negatives(data, out, thalweg.load(model), mode="resume", on_status=on_status)
"""


@pytest.mark.subprocess
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_kill_9_and_resume(tmp_path: Path, model_folder: Path, model: Any) -> None:
    data = str(write_rows(tmp_path / "pairs.jsonl", some_pairs(45)))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    mine_hard_negatives(data, whole, model)
    arguments = [sys.executable, "-c", KILL, data, str(out), str(model_folder), str(tmp_path / "cache")]
    for stages, code in ((["rows"], -signal.SIGKILL), ([], 0)):
        done = subprocess.run([*arguments, *stages], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert out.exists() == (code == 0)
    assert [row["negatives"] for row in read(out)] == [row["negatives"] for row in read(whole)]
    assert not out.with_name("out.jsonl.parts").exists()


def test_resuming_with_other_settings_is_refused(tmp_path: Path, model: Any) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", some_pairs(20))
    out = tmp_path / "out.jsonl"

    def die(status: run.MiningStatus) -> None:
        raise Killed

    with pytest.raises(Killed):
        mine_hard_negatives(str(path), out, model, on_status=die)
    with pytest.raises(CorpusError, match=r"holds an unfinished run: continue it with --resume"):
        mine_hard_negatives(str(path), out, model)
    with pytest.raises(CorpusError, match=r"range_max was 10, is 20.*start over: --overwrite"):
        mine_hard_negatives(str(path), out, model, Rule(range_max=20), mode="resume")
    write_rows(path, some_pairs(21))
    with pytest.raises(CorpusError, match=r"pairs.jsonl has changed"):
        mine_hard_negatives(str(path), out, model, mode="resume")
    assert mine_hard_negatives(str(path), out, model, mode="overwrite").rows == 21
    with pytest.raises(CorpusError, match="exists; replace it with --overwrite"):
        mine_hard_negatives(str(path), out, model)


def test_wrong_arguments(tmp_path: Path, model: Any) -> None:
    path = str(write_rows(tmp_path / "d" / "pairs.jsonl", some_pairs(3)))
    with pytest.raises(CorpusError, match=r"must end in .parquet or .jsonl"):
        mine_hard_negatives(path, tmp_path / "out.csv", model)
    with pytest.raises(InvalidInputError, match=r"thalweg\.load gives, or a SentenceTransformer, not str"):
        mine_hard_negatives(path, tmp_path / "out.jsonl", "a-model")
    write_rows(tmp_path / "d" / "more.jsonl", some_pairs(3))
    with pytest.raises(CorpusError, match=r"is 2 data sets \(more, pairs\); mine one at a time"):
        mine_hard_negatives(str(tmp_path / "d"), tmp_path / "out.jsonl", model)
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"query": "q"}])
    with pytest.raises(CorpusError, match=r"line 1: there is no column for the text; it has 'query'"):
        mine_hard_negatives(path, tmp_path / "out.jsonl", model, corpus=str(corpus))
    for name in ("margin", "relative_margin"):
        with pytest.raises(InvalidInputError, match=f"{name} must be a finite number, got nan"):
            Rule(**{name: float("nan")})
    with pytest.raises(InvalidInputError, match="ranks 3 to 5 have no room for 3 negatives"):
        Rule(3, 3, 5)
    with pytest.raises(InvalidInputError, match="n must be at least 1, got 0"):
        Rule(0)


def test_choosing_among_few() -> None:
    found = Neighbours(np.array([[4, 2, -1], [7, 8, 9]]), np.array([[0.9, 0.5, -np.inf], [0.8, 0.7, 0.6]], np.float32))
    rule = Rule(2, 0, 3, margin=0.1, strategy="top")
    chosen = choose(found, np.array([0.7, 0.85], np.float32), rule, np.random.default_rng(0))
    assert chosen.documents.tolist() == [[2, -1], [8, 9]]
    random = choose(found, np.array([2.0, 2.0], np.float32), Rule(2, 1, 3), np.random.default_rng(0))
    assert random.documents.tolist() == [[2, -1], [8, 9]]
