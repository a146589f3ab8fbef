"""The spellings of a row, and what is said of a row that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thalweg.errors import CorpusError
from thalweg.training.data import load_training_data
from thalweg.training.data.rows import NEGATIVE, POSITIVE, QUERY

from .tables import Row, write_rows

PASSAGE = {"docid": "7", "title": "Bridges", "text": "It was swept away."}


def load_one(path: Path, rows: list[Row], **options: Any) -> Any:
    data = load_training_data([str(write_rows(path, rows))], **options)
    (dataset,) = data.datasets.values()
    return dataset


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("query", QUERY)
@pytest.mark.parametrize("positive", POSITIVE)
def test_spellings_of_pairs(tmp_path: Path, query: str, positive: str, suffix: str) -> None:
    dataset = load_one(tmp_path / f"a.{suffix}", [{query: "Which bridge?", positive: "The old one.", "id": 3}])
    assert dataset[:] == {"anchor": ["Which bridge?"], "positive": ["The old one."]}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("negative", NEGATIVE)
@pytest.mark.parametrize("several", [False, True])
def test_spellings_of_negatives(tmp_path: Path, negative: str, several: bool, suffix: str) -> None:
    value = ["The new one.", "A ferry."] if several else "The new one."
    dataset = load_one(tmp_path / f"a.{suffix}", [{"query": "q", "pos": ["p"], negative: value}])
    expected = {"anchor": ["q"], "positive": ["p"], "negative_1": ["The new one."]}
    assert dataset[:] == expected | ({"negative_2": ["A ferry."]} if several else {})


def test_numbered_negatives_keep_their_order(tmp_path: Path) -> None:
    row = {"anchor": "q", "positive": "p", **{f"negative_{i}": f"n{i}" for i in (10, 2, 1)}}
    assert load_one(tmp_path / "a.parquet", [row])[0] == {
        "anchor": "q",
        "positive": "p",
        "negative_1": "n1",
        "negative_2": "n2",
        "negative_3": "n10",
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_passages_with_titles(tmp_path: Path, suffix: str) -> None:
    row = {
        "query_id": "1",
        "query": "q",
        "positive_passages": [PASSAGE],
        "negative_passages": [{"docid": "8", "title": "", "text": "untitled"}, PASSAGE | {"text": "another"}],
    }
    assert load_one(tmp_path / f"a.{suffix}", [row])[0] == {
        "anchor": "q",
        "positive": "Bridges\nIt was swept away.",
        "negative_1": "untitled",
        "negative_2": "Bridges\nanother",
    }


def test_instructions_of_rows_go_before_the_query_only(tmp_path: Path) -> None:
    rows = [{"instruction": "Find the label", "query": "q", "positive": "p"}, {"query": "r", "positive": "s"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = load_training_data([str(path)])
    assert data.datasets["a"]["anchor"][:] == ["Instruct: Find the label\nQuery: q", "r"]
    assert data.datasets["a"]["positive"][:] == ["p", "s"]
    assert data.prompts == {"a": ""}
    assert load_training_data([str(path)], instructions=False).datasets["a"]["anchor"][:] == ["q", "r"]


def test_an_instruction_of_all_rows_is_a_prompt(tmp_path: Path) -> None:
    """And a second one, however late, puts each into its anchor."""
    rows = [{"task": "Find it", "query": f"q{i}", "positive": "p"} for i in range(2000)]
    data = load_training_data([str(write_rows(tmp_path / "a.jsonl", rows))])
    assert data.prompts == {"a": "Instruct: Find it\nQuery: "}
    assert data.datasets["a"]["anchor"][1999] == "q1999"
    data = load_training_data([str(write_rows(tmp_path / "b.jsonl", [*rows, {"query": "q", "positive": "p"}]))])
    assert data.prompts == {"b": ""}
    assert data.datasets["b"]["anchor"][1999:] == ["Instruct: Find it\nQuery: q1999", "q"]


def test_one_of_several_positives_is_drawn(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "positives": [f"a{i}", f"b{i}", "", f"c{i}"]} for i in range(50)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = load_training_data([str(path)])
    drawn = data.datasets["a"]["positive"][:]
    assert {text[0] for text in drawn} == {"a", "b", "c"}
    assert [text[1:] for text in drawn] == [str(i) for i in range(50)]
    assert data.notes["a"] == {"further positives": 100}
    assert load_training_data([str(path)], seed=0).datasets["a"]["positive"][:] == drawn
    assert load_training_data([str(path)], seed=1).datasets["a"]["positive"][:] != drawn


GOOD = {"query": "q", "positive": "p"}


@pytest.mark.parametrize(
    ("bad", "column", "value", "fix"),
    [
        ({"query": 17, "positive": "p"}, "query", "17", "is a number, but a text is needed"),
        ({"query": ["q"], "positive": "p"}, "query", "['q']", "write one string a row"),
        ({"query": "q", "positive": 1.5}, "positive", "1.5", "a string, {'title': …, 'text': …} or a list"),
        ({"query": "q", "pos": ["p", 4]}, "pos", "4", "is a number"),
        ({"query": "q", "pos": [{"title": "t"}]}, "pos", "{'title': 't'}", "'text': …"),
        ({"query": "q", "pos": "p", "neg": [["n"]]}, "neg", "['n']", "is a list"),
        ({"query": "q", "pos": "p", "negative_2": True}, "negative_2", "True", "is a truth value"),
        ({"query": "q", "pos": "p", "task": 3}, "task", "3", "a text is needed"),
        ({"query": "a\ud800b", "pos": "p"}, "query", r"'a\ud800b'", "the lone surrogate"),
    ],
)
def test_a_bad_value_is_quoted_with_its_place(tmp_path: Path, bad: Row, column: str, value: str, fix: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD | {"query": "r"}, bad, GOOD])
    with pytest.raises(CorpusError) as caught:
        load_training_data([str(path)])
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3, column {column!r}: {value} ")
    assert fix in message


def test_a_bad_value_of_parquet_is_quoted_with_its_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [{"query": 1, "positive": "p"}])
    with pytest.raises(CorpusError, match=r"rows.parquet, row 1, column 'query': 1 is a number"):
        load_training_data([str(path)])


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"query": ["x" * 100_000], "positive": "p"}])
    with pytest.raises(CorpusError) as caught:
        load_training_data([str(path)])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_missing_columns_are_named(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"rows.{suffix}", [{"text": "t", "source": "s"}])
    with pytest.raises(CorpusError, match=r"no column for the query; it has 'text', 'source': rename one to 'anchor'"):
        load_training_data([str(path)])
    path = write_rows(tmp_path / f"more.{suffix}", [{"query": "t"}])
    with pytest.raises(CorpusError, match="no column for the positive; it has 'query'"):
        load_training_data([str(path)])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"query": "q", "positive": ', "not JSON: "),
        (b'["q", "p"]', "a JSON object was expected, not list"),
        (b'{"query": "\xff"}', "not UTF-8: byte 0xff at offset 11"),
    ],
)
def test_a_line_that_is_no_row(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"query": "q", "positive": "p"}\n\n' + line + b"\n")
    with pytest.raises(CorpusError, match=f"rows.jsonl, line 3: .*{told}"):
        load_training_data([str(path)])


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"rows.{suffix}", [{"query": f"{i * i}", "positive": f"{i}"} for i in range(99)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorpusError, match=r"rows\.|gzip data ends early"):
        load_training_data([str(path)])
