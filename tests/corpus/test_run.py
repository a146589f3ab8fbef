"""Whole runs: what is in the output, in which order, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg
from thalweg.corpus import Columns, Status, read_metadata
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.pooling.vectors import to_precision

from .corpora import rows_of, run, write_corpus
from .tiny import make_text, write_model

COLUMNS = ["key", "id", "path", "row", "section", "char_start", "char_end", "n_tokens", "text"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its broken file is long enough for the embedder to begin before the break is reached."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "docs", broken_words=15_000)


def texts_of(root: Path) -> dict[str, str]:
    """id → text of every document that can be read."""
    texts = {path.name: path.read_text() for path in sorted(root.glob("[abh]*"))}
    rows = [json.loads(line) for line in (root / "c.jsonl").read_text().splitlines() if line.startswith("{")]
    numbers = [i for i in range(31) if i != 10]
    texts |= {f"c.jsonl:{number}": row["text"] for number, row in zip(numbers, rows, strict=True)}
    texts |= {"d.csv:0": "one, two", "d.csv:1": "", "d.csv:2": "three"}
    return dict(sorted(texts.items(), key=lambda item: _place(item[0])))


def _place(id_: str) -> tuple[str, int]:
    name, _, row = id_.partition(":")
    return name, int(row or 0)


def test_every_document_has_its_vector_in_the_order_of_the_input(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    summary = run(embedder, corpus, out)
    rows, vectors = rows_of(out)
    texts = texts_of(corpus)
    assert [row["id"] for row in rows] == list(texts)
    assert np.abs(vectors - embedder.encode(list(texts.values()))).max() <= 1e-5
    for row, text in zip(rows, texts.values(), strict=True):
        assert list(row) == COLUMNS
        assert row["text"] == text[:1000]
        assert (row["char_start"], row["char_end"], row["section"]) == (0, len(text), 0)
        assert Path(row["path"]).read_bytes()
        assert row["row"] == (int(row["id"].partition(":")[2]) if ":" in row["id"] else None)
    empty = next(row for row in rows if row["id"] == "d.csv:1")
    assert empty["n_tokens"] == 1, "an empty row is its EOS"
    assert not list(tmp_path.glob("*.parts"))
    assert (summary.documents, summary.rows, summary.failed, summary.skipped) == (41, 41, 3, 1)
    assert summary.tokens == sum(row["n_tokens"] for row in rows)
    assert summary.new_tokens > summary.tokens, "the file that breaks at its last byte was embedded up to there"
    assert [(told.id, told.skipped) for told in summary.shown] == [
        ("c.jsonl:10", False),
        ("f-empty.txt", True),
        ("g-binary.txt", False),
        ("e-bad.txt", False),
    ]
    listed = [json.loads(line) for line in (tmp_path / "out.parquet.failures.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == [told.id for told in summary.shown]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_sections_cover_the_text_and_see_what_came_before(corpus: Path, tmp_path: Path, pooling: Any) -> None:
    embedder = thalweg.load(write_model(tmp_path / "model", pooling=pooling), device="cpu")
    out = tmp_path / "out.parquet"
    run(embedder, corpus, out, section_size=100)
    rows, vectors = rows_of(out)
    for id_, text in texts_of(corpus).items():
        at = [i for i, row in enumerate(rows) if row["id"] == id_]
        assert at == list(range(at[0], at[0] + len(at))), "sections stand together"
        mine = [rows[i] for i in at]
        assert [row["section"] for row in mine] == list(range(len(mine)))
        assert "".join(row["text"] for row in mine) == text
        assert [row["char_start"] for row in mine[1:]] == [row["char_end"] for row in mine[:-1]]
        assert all(row["text"] == text[row["char_start"] : row["char_end"]] for row in mine)
        assert all(row["n_tokens"] == 100 for row in mine[:-1])
        expected = [result.vector for result in embedder.encode_stream([text], section_size=100)]
        assert np.abs(vectors[at] - np.array(expected)).max() <= 1e-5
    assert not any(row["id"] == "e-bad.txt" for row in rows), "a document that fails midway leaves no rows"


def test_columns_can_be_named(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    run(embedder, corpus / "c.jsonl", tmp_path / "out.jsonl", columns=Columns("text", "key"))
    rows, _ = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [f"k{i}" for i in range(30)]


@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
@pytest.mark.parametrize("precision", ["float32", "uint8", "binary"])
def test_formats_hold_the_same(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, suffix: str, precision: str
) -> None:
    run(embedder, corpus, tmp_path / "a.parquet", precision=precision)
    run(embedder, corpus, tmp_path / f"b{suffix}", precision=precision)
    (rows_a, vectors_a), (rows_b, vectors_b) = rows_of(tmp_path / "a.parquet"), rows_of(tmp_path / f"b{suffix}")
    assert rows_a == rows_b
    if precision == "float32":
        vectors_a, vectors_b = vectors_a.astype(np.float32), vectors_b.astype(np.float32)
    assert np.array_equal(vectors_a, vectors_b)
    metadata_a, metadata_b = read_metadata(tmp_path / "a.parquet"), read_metadata(tmp_path / f"b{suffix}")
    assert metadata_a == metadata_b


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_are_those_of_the_whole_run(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, precision: Any
) -> None:
    """The same as one `encode` over everything, although no more than a part is ever in memory."""
    out = tmp_path / "out.parquet"
    run(embedder, corpus, out, precision=precision, save_every=0.1)
    schema = pq.read_schema(out).field("vector").type
    width = 4 if "binary" in precision else 32
    assert (schema.value_type, schema.list_size) == (pa.uint8() if precision.startswith("u") else pa.int8(), width)
    run(embedder, corpus, tmp_path / "exact.parquet")
    _, exact = rows_of(tmp_path / "exact.parquet")
    _, stored = rows_of(out)
    levels = np.abs(stored.astype(int) - to_precision(exact.astype(np.float32), precision).astype(int))
    assert levels.max() <= (1 if "int" in precision else 0)


def test_metadata_says_how_the_vectors_were_made(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    run(embedder, corpus, out, prompt="note: ", truncate_dim=8, normalize=False, model="some/model", section_size=50)
    metadata = read_metadata(out)
    assert (metadata.model, metadata.fingerprint) == ("some/model", embedder.fingerprint)
    assert (metadata.dimension, metadata.normalized, metadata.prompt, metadata.section_size) == (8, False, "note: ", 50)
    assert metadata.version == thalweg.__version__
    assert np.load(out).shape == (metadata.rows, 8)


def test_the_prompt_for_documents_is_used_where_there_is_one(tmp_path: Path) -> None:
    embedder = thalweg.load(write_model(tmp_path / "model", prompts={"passage": "p: ", "other": "o: "}), device="cpu")
    (tmp_path / "a.txt").write_text("words")
    for settings, prompt in (({}, "p: "), ({"prompt_name": "other"}, "o: "), ({"prompt": ""}, "")):
        out = tmp_path / "out.parquet"
        run(embedder, tmp_path / "a.txt", out, "overwrite", **settings)
        assert read_metadata(out).prompt == prompt
        rows, vectors = rows_of(out)
        assert rows[0]["char_end"] == 5, "offsets do not count the prompt"
        assert np.abs(vectors - embedder.encode(["words"], prompt=prompt)).max() <= 1e-5


def test_text_can_be_left_out(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    for name in ("out.parquet", "out.npy", "out.jsonl"):
        run(embedder, corpus, tmp_path / name, with_text=False, section_size=200)
        rows, _ = rows_of(tmp_path / name)
        assert list(rows[0]) == COLUMNS[:-1]


def test_cut_documents_are_counted(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    summary = run(embedder, corpus, tmp_path / "out.parquet", max_length=10)
    rows, _ = rows_of(tmp_path / "out.parquet")
    assert max(row["n_tokens"] for row in rows) == 10
    lengths = [len(ids) for ids in embedder.tokenizer.encode_batch(list(texts_of(corpus).values()))]
    assert summary.cut == sum(length > 10 for length in lengths) + 1
    assert "e-bad.txt" in [row["id"] for row in rows], "it is cut before its broken end is reached"


def test_strict_stops_and_keeps_what_is_done(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(CorpusError, match=r"c.jsonl:10: line 11: not JSON.*--strict"):
        run(embedder, corpus, out, strict=True)
    assert not out.exists()
    summary = run(embedder, corpus, out, "resume")
    assert summary.documents == 41


def test_where_nothing_can_be_embedded_nothing_is_written(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"no document could be embedded.*g-binary.txt: looks binary"):
        run(embedder, corpus / "g-binary.txt", tmp_path / "out.parquet")
    with pytest.raises(CorpusError, match="an empty file"):
        run(embedder, corpus / "f-empty.txt", tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_leaves_nothing_behind(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    for settings in ({"prompt_name": "nope"}, {"truncate_dim": 33}, {"schedule": {"max_tokens_per_step": 2}}):
        with pytest.raises(InvalidInputError):
            run(embedder, corpus, tmp_path / "out.parquet", **settings)
    assert not list(tmp_path.iterdir())


def test_an_output_is_only_replaced_on_demand(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(embedder, corpus / "d.csv", out)
    with pytest.raises(CorpusError, match="exists; replace it with --overwrite"):
        run(embedder, corpus / "h-last.txt", out)
    run(embedder, corpus / "h-last.txt", out, "overwrite")
    assert len(rows_of(out)[0]) == 1


def test_a_list_of_failures_does_not_outlive_its_output(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    run(embedder, corpus, out)
    assert out.with_name("out.parquet.failures.jsonl").exists()
    run(embedder, corpus / "d.csv", out, "overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("name", ["out.pkl", "out", "nowhere/out.parquet"])
def test_an_output_that_cannot_be_is_refused_at_once(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str
) -> None:
    with pytest.raises(CorpusError, match=r"must end in \.parquet, \.jsonl, \.npy|does not exist"):
        run(embedder, corpus, tmp_path / name)


def test_status_adds_up(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    last: list[Status] = []

    def follow(status: Status) -> None:
        seen.append((status.documents, status.tokens, status.meter.read))
        last[:] = [status]

    summary = run(embedder, corpus, tmp_path / "out.parquet", on_status=follow, section_size=64)
    (status,) = last
    assert seen == sorted(seen)
    assert status.writing
    assert (status.documents, status.failed, status.skipped) == (41, 3, 1)
    assert (status.tokens, status.n_documents) == (summary.new_tokens, None)
    assert status.meter.read == status.n_bytes == sum(path.stat().st_size for path in corpus.iterdir())


def test_a_long_file_is_read_in_pieces(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """What is read at any time is only what the next steps need."""
    (tmp_path / "long.txt").write_text(make_text(60_000))
    size = (tmp_path / "long.txt").stat().st_size
    steps: list[tuple[int, int]] = []

    def follow(status: Status) -> None:
        steps.append((status.meter.read, status.tokens))

    summary = run(embedder, tmp_path / "long.txt", tmp_path / "out.parquet", on_status=follow, section_size=500)
    assert max(read - tokens * size / summary.tokens for read, tokens in steps) < 150_000 < size / 2
