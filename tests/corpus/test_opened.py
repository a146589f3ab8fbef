"""Searching with conditions, many questions and several files: what brute force finds, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from tests.examples import examples
from thalweg.corpus import ranking, results
from thalweg.corpus.rows import COLUMNS, Metadata, list_column, output_schema
from thalweg.corpus.writers import write_output
from thalweg.embedder.similarity import similarity
from thalweg.errors import CheckpointError, CorpusError, InvalidInputError
from thalweg.pooling.vectors import Precision

from .corpora import rows_of, run
from .tiny import make_text, write_model

NAMES = ["out.parquet", "out.jsonl", "out.npy"]
WIDTH = 32


def write(
    out: Path, embedder: thalweg.Embedder, vectors: Any, rows: list[dict[str, Any]], precision: Precision = "float32"
) -> Path:
    """An output of given rows, as a run would write it."""
    vectors = np.asarray(vectors, np.float32)
    ranges = [vectors.min(axis=0).tolist(), vectors.max(axis=0).tolist()] if precision in ("int8", "uint8") else None
    metadata = Metadata(
        model=str(embedder.folder),
        revision=None,
        fingerprint=embedder.fingerprint,
        dimension=vectors.shape[1],
        precision=precision,
        normalized=True,
        similarity="cosine",
        prompt="",
        section_size=None,
        version="0",
        rows=len(rows),
        documents=1,
        tokens=1,
        failed=0,
        ranges=ranges,
        run={},
    )
    schema = output_schema(metadata, with_text=True)
    columns = [pa.array([row[name] for row in rows], COLUMNS[name]) for name in COLUMNS]
    names = schema.names
    batches = [
        pa.record_batch([*(column.slice(at, 7) for column in columns), list_column(vectors[at : at + 7])], names=names)
        for at in range(0, len(rows), 7)
    ]
    out.parent.mkdir(exist_ok=True)
    write_output(out, out.parent, metadata, batches, with_text=True)
    return out


def make_rows(documents: list[int], texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "key": f"{document}#{at}",
            "id": f"d{document % 3}",  # ids repeat, paths and rows do not
            "path": f"p{document}",
            "row": document if document % 2 else None,
            "section": at,
            "char_start": 0,
            "char_end": len(text),
            "n_tokens": at % 5,
            "text": text,
        }
        for at, (document, text) in enumerate(zip(documents, texts, strict=True))
    ]


def brute_force(
    corpora: list[tuple[list[dict[str, Any]], Any]], query: Any, k: int, passes: Callable[..., bool], by: str
) -> list[tuple[int, int]]:
    """(file, row) of the hits: every row scored in float64, blank ones left out, sorted, documents taken once."""
    found: list[tuple[float, int, int, Any]] = []
    for file, (rows, vectors) in enumerate(corpora):
        for at, (row, vector) in enumerate(zip(rows, np.asarray(vectors, np.float64), strict=True)):
            size = np.sqrt((vector * vector).sum()) * np.sqrt((query.astype(np.float64) ** 2).sum())
            score = (vector * query.astype(np.float64)).sum() / size if size else 0.0
            if row["text"].strip() and passes(row):
                found.append((-score, file, at, (file, row["id"], row["path"], row["row"])))
    found.sort(key=lambda each: each[:3])
    if by == "document":
        seen: set[Any] = set()
        found = [each for each in found if each[3] not in seen and not seen.add(each[3])]  # type: ignore[func-returns-value]
    return [(file, at) for _, file, at, _ in found[:k]]


CONDITIONS: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    (None, lambda row: True),
    ("n_tokens > 2", lambda row: row["n_tokens"] > 2),
    ("n_tokens in (0, 3) or path like 'p1%'", lambda row: row["n_tokens"] in (0, 3) or row["path"].startswith("p1")),
    (
        "not (row is null) and section between 3 and 40",
        lambda row: row["row"] is not None and 3 <= row["section"] <= 40,
    ),
    ("row <> 5", lambda row: row["row"] is not None and row["row"] != 5),
    ("row not in (1, 3)", lambda row: row["row"] is not None and row["row"] not in (1, 3)),
    ("text like '%a%'", lambda row: "a" in row["text"]),
    ("false", lambda row: False),
    (pc.field("section") == 7, lambda row: row["section"] == 7),
    (
        (pc.field("n_tokens") * 2 > 4) & (pc.field("path") != "p2"),
        lambda row: row["n_tokens"] > 2 and row["path"] != "p2",
    ),
]


@st.composite
def corpora(draw: st.DrawFn) -> Any:
    """Vectors with many ties (few distinct ones, some zero), documents whose sections are mixed, blank texts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for _ in range(draw(st.integers(1, 2))):
        n = draw(st.integers(1, 60))
        distinct = rng.standard_normal((draw(st.integers(1, n)), WIDTH)).astype(np.float32)
        if draw(st.booleans()):
            distinct[0] = 0
        vectors = distinct[rng.integers(0, len(distinct), n)]
        documents = rng.integers(0, draw(st.integers(1, n)), n).tolist()
        texts = [str(rng.choice(["a\nb", "text", "", " \t", "\x1c", "wörds"])) for _ in range(n)]
        found.append((make_rows(documents, texts), vectors))
    return found


@examples(60)
@given(
    data=corpora(),
    name=st.sampled_from(NAMES),
    precision=st.sampled_from(get_args(Precision)),
    k=st.integers(1, 30),
    by=st.sampled_from(["section", "document"]),
    condition=st.sampled_from(CONDITIONS),
    batch=st.integers(1, 40),
)
def test_hits_are_those_of_brute_force(
    embedder: thalweg.Embedder,
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,
    name: str,
    precision: Any,
    k: int,
    by: Any,
    condition: Any,
    batch: int,
) -> None:
    """Also with ties, which keep the order of the files and rows, and with batches of any size."""
    pytest.importorskip("sqlglot")
    folder = tmp_path_factory.mktemp("made")
    where, passes = condition
    paths = [
        write(folder / str(at) / name, embedder, vectors, rows, precision) for at, (rows, vectors) in enumerate(data)
    ]
    corpus = thalweg.open_corpus(paths, model=embedder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_BYTES", 4 * WIDTH * batch)
        patch.setattr(results, "LINES", batch)
        patch.setattr(ranking, "QUESTIONS", 2)
        stored = [(rows_of(path)[0], thalweg.open_corpus(path).vectors()) for path in paths]
        queries = ["boats", "grey stones", ""]
        found = corpus.search(queries, k, where=where, by=by)
        alone = corpus.search(queries[1], k, where=where, by=by)
    assert np.allclose([hit.score for hit in alone], [hit.score for hit in found[1]], atol=1e-5)
    vectors = embedder.encode_query(queries)
    for query, hits in zip(vectors, found, strict=True):
        expected = brute_force(stored, query, k, passes, by)
        assert [hit.file for hit in hits] == [paths[file] for file, _ in expected]
        assert [hit.row for hit in hits] == [stored[file][0][at] for file, at in expected]
    assert len(corpus) == sum(len(rows) for rows, _ in stored)


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_every_measure_ranks_as_the_model_does(kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, WIDTH)).astype(np.float32) * rng.uniform(0.1, 9, (500, 1)).astype(np.float32)
    questions = rng.standard_normal((5, WIDTH)).astype(np.float32)
    best = ranking.Ranking(questions, 20, kind, documents=False)
    for first in range(0, 500, 90):
        numbers = np.arange(first, min(500, first + 90))
        best.add("file", 0, numbers, vectors[numbers])
    scores = similarity(questions, vectors, kind)
    for places, each in zip(best.places(), scores, strict=True):
        assert [place.number for place in places] == np.argsort(-each, kind="stable")[:20].tolist()
        assert np.allclose([place.score for place in places], np.sort(each)[::-1][:20], rtol=1e-5)


def test_equal_vectors_keep_their_order_in_any_batch() -> None:
    """The arithmetic of a matrix product differs with the place of a row in it."""
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.standard_normal((3, 768)).astype(np.float32), 1000, axis=0)
    questions = rng.standard_normal((7, 768)).astype(np.float32)
    for size in (17, 1000, 3000):
        best = ranking.Ranking(questions, 1500, "cosine", documents=False)
        for first in range(0, 3000, size):
            numbers = np.arange(first, min(3000, first + size))
            best.add("file", 0, numbers, vectors[numbers])
        for places in best.places():
            numbers_found = [place.number for place in places]
            assert numbers_found[:1000] == sorted(numbers_found[:1000])
            assert len({number // 1000 for number in numbers_found[:1000]}) == 1
            assert numbers_found[1000:] == sorted(numbers_found[1000:])


def test_what_float32_cannot_tell_is_still_the_best_of_its_document() -> None:
    """Zeros, whose bound of the error is infinite, beside vectors that point away."""
    vectors = -np.eye(2, WIDTH, dtype=np.float32)
    vectors[1] = 0
    best = ranking.Ranking(-vectors[:1], 1, "cosine", documents=True)
    best.add("file", 0, np.arange(2), vectors, ranking.Groups(pa.table({"id": ["a", "a"]})))
    assert best.places() == [[(0.0, 0, 1)]]


@pytest.fixture(scope="module")
def made(embedder: thalweg.Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with columns of its own in each format."""
    folder = tmp_path_factory.mktemp("columns")
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((50, WIDTH)).astype(np.float32)
    rows = make_rows([at // 4 for at in range(50)], [make_text(4, at) for at in range(50)])
    extra = [
        {"year": 1980 + at if at % 7 else None, "my tag": f"t{at % 4}", "weight": at if at < 20 else at / 8}
        for at in range(50)
    ]
    for name in NAMES:
        write(folder / name, embedder, vectors, rows)
    table = pq.read_table(folder / "out.parquet")
    for name in extra[0]:
        table = table.append_column(
            name, pa.array([each[name] for each in extra], pa.float64() if name == "weight" else None)
        )
    pq.write_table(table, folder / "out.parquet")
    for name in ("out.jsonl", "out.npy.ids.jsonl"):
        lines = (folder / name).read_text().splitlines()
        told = [json.dumps({**json.loads(line), **each}) for line, each in zip(lines, extra, strict=True)]
        (folder / name).write_text("\n".join(told) + "\n")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_any_column_of_the_file_can_be_asked_for(made: Path, embedder: thalweg.Embedder, name: str) -> None:
    pytest.importorskip("sqlglot")
    corpus = thalweg.open_corpus(made / name, model=embedder)
    for where, passes in (
        ("year > 2000 and \"my tag\" = 't1'", lambda row: (row["year"] or 0) > 2000 and row["my tag"] == "t1"),
        ("weight < 3.5", lambda row: row["weight"] < 3.5),
        ("weight >= -1e3 and year is null", lambda row: row["year"] is None),
        (pc.starts_with(pc.field("my tag"), "t2"), lambda row: row["my tag"] == "t2"),
    ):
        hits = corpus.search("boats", 50, where=where)
        table = corpus.to_arrow().drop_columns(["vector"]).to_pylist()
        assert sorted(hit.row["section"] for hit in hits) == [row["section"] for row in table if passes(row)]
        assert all(set(hit.row) == set(table[0]) for hit in hits)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("nope = 1", r"does not fit .*there is no column 'nope'; its columns are key \(string\), id \(string\)"),
        ("section = 'a'", r"does not fit .*no kernel matching input types \(int32, string\)"),
        ("text > 5", "no kernel matching"),
        ("section", "must evaluate to bool"),
        ("section like 'a%'", "no kernel"),
        ("", "is not supported"),
        ("section = ", "cannot be read"),
        ("section = 1; drop table x", "cannot be read"),
        ("section = 1) or (section = 2", "is not supported"),
        ("section = 1 -- yes", None),
        ("upper(id) = 'A'", r"is not supported; a condition compares columns with values"),
        ("section + 1 > 2", "is not supported"),
        ("section in (select 1)", "is not supported"),
        ("section in ()", "is not supported"),
        ("a.b = 1", "double quotes"),
        ("row = null", "column is null"),
        ("text like id", "is not supported"),
        ("text like 'a' escape 'b'", "is not supported"),
        ("text like any ('a')", "is not supported"),
        ("section between symmetric 3 and 1", "is not supported"),
        ("section = 99999999999999999999", "is not supported"),
        ("section = ?", "is not supported"),
        ("section = cast('1' as int)", "is not supported"),
        ("select 1", "cannot be read|is not supported"),
        ("row is true", "is not supported"),
        ("case when section = 1 then true end", "is not supported"),
        ("(" * 3000 + "true" + ")" * 3000, "nested too deeply"),
        (5, r"must be a str or a pyarrow.compute.Expression, got int: 5"),
        (pc.field("nope") == 1, "its columns are key"),
        (pc.field("vector") == 1, "its columns are key"),
        (pc.field("section") + 1, "must evaluate to bool"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_conditions_that_cannot_be(made: Path, embedder: thalweg.Embedder, where: Any, reason: str | None) -> None:
    pytest.importorskip("sqlglot")
    corpus = thalweg.open_corpus(made / "out.parquet", model=embedder)
    if reason is None:
        assert len(corpus.search("boats", where=where)) == 1, "a comment"
    else:
        with pytest.raises(InvalidInputError, match=reason):
            corpus.search("boats", where=where)


def test_a_condition_that_fails_for_a_row(made: Path, embedder: thalweg.Embedder) -> None:
    corpus = thalweg.open_corpus(made / "out.parquet", model=embedder)
    with pytest.raises(InvalidInputError, match="cannot be computed for the rows"):
        corpus.search("boats", where=pc.divide(pc.field("section"), pc.field("section")) == 1)


def test_thousands_of_values(made: Path, embedder: thalweg.Embedder) -> None:
    pytest.importorskip("sqlglot")
    corpus = thalweg.open_corpus(made / "out.parquet", model=embedder)
    values = ", ".join(map(str, range(1, 5000, 7)))
    assert len(corpus.search("boats", 50, where=f"section in ({values})")) == 7


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"query": []}, "empty list"),
        ({"query": 5}, "must be a str or a list of them, got int: 5"),
        ({"query": b"x"}, "got bytes"),
        ({"query": ["a", None]}, r"query\[1\] must be a str"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": 1.5}, "k must be a whole number"),
        ({"k": True}, "k must be a whole number"),
        ({"by": "page"}, "by must be one of section, document"),
        ({"prompt": "a", "prompt_name": "query"}, "exclude each other"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(made: Path, embedder: thalweg.Embedder, arguments: Any, reason: str) -> None:
    corpus = thalweg.open_corpus(made / "out.parquet", model=embedder)
    with pytest.raises(InvalidInputError, match=reason):
        corpus.search(**{"query": "boats", **arguments})


def test_what_cannot_be_opened(made: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="path is an empty list"):
        thalweg.open_corpus([])
    with pytest.raises(InvalidInputError, match="path must be a path or a list of paths, got 5"):
        thalweg.open_corpus(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="device: of no use with an Embedder"):
        thalweg.open_corpus(made / "out.npy", model=embedder, device="cpu")
    with pytest.raises(InvalidInputError, match="model must be a name, a folder or an Embedder"):
        thalweg.open_corpus(made / "out.npy", model=5)  # type: ignore[arg-type]
    other = thalweg.load(write_model(tmp_path / "other", seed=1, prompts={"a": "b"}), device="cpu")
    second = write(tmp_path / "b.parquet", other, np.ones((2, WIDTH)), make_rows([0, 1], ["a", "b"]))
    with pytest.raises(CorpusError, match="cannot be searched together: fingerprint is"):
        thalweg.open_corpus([made / "out.parquet", second])
    third = write(tmp_path / "c.parquet", embedder, np.ones((2, 8)), make_rows([0, 1], ["a", "b"]))
    with pytest.raises(CorpusError, match="cannot be searched together: dimension is 32 in the one and 8"):
        thalweg.open_corpus([made / "out.parquet", third])


def test_one_file_twice_is_one(made: Path, embedder: thalweg.Embedder) -> None:
    path = made / "out.parquet"
    corpus = thalweg.open_corpus([path, str(path)], model=embedder)
    assert len(corpus) == len(corpus.search("boats", 99)) == 50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", get_args(Precision))
def test_vectors_and_tables(embedder: thalweg.Embedder, tmp_path: Path, name: str, precision: Any) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, WIDTH)).astype(np.float32)
    rows = make_rows(list(range(50)), ["text"] * 50)
    out = write(tmp_path / name, embedder, vectors, rows, precision)
    corpus = thalweg.open_corpus(out)
    found = corpus.vectors()
    assert (found.shape, found.dtype) == ((50, WIDTH), np.float32)
    if precision == "float32":
        assert np.array_equal(found, vectors)
        assert isinstance(found.base, np.memmap) == (name == "out.npy")
    elif "binary" in precision:
        assert np.array_equal(found, np.where(vectors > 0, 1, -1))
    else:
        assert np.abs(found - vectors).max() <= np.ptp(vectors, axis=0).max() / 255
    assert np.array_equal(np.concatenate(list(corpus.vector_batches())), found)
    table = corpus.to_arrow()
    assert table.drop_columns(["vector"]).to_pylist() == rows
    assert np.array_equal(np.array(table.column("vector").to_pylist(), np.float32), rows_of(out)[1].astype(np.float32))
    assert json.loads(table.schema.metadata[b"thalweg"])["precision"] == precision
    twice = thalweg.open_corpus([out, write(tmp_path / "b.parquet", embedder, vectors[:9], rows[:9], precision)])
    assert len(twice.to_arrow()) == len(twice.vectors()) == 59


def test_tables_of_two_precisions_are_refused(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    rows = make_rows([0, 1], ["a", "b"])
    paths = [write(tmp_path / f"{p}.npy", embedder, np.eye(2, WIDTH), rows, p) for p in ("float32", "int8")]  # type: ignore[arg-type]
    corpus = thalweg.open_corpus(paths, model=embedder)
    assert len(corpus.search("boats")) == 4
    with pytest.raises(CorpusError, match="do not fit together"):
        corpus.to_arrow()


@pytest.mark.parametrize("name", NAMES)
def test_vectors_that_are_not_finite_are_refused(embedder: thalweg.Embedder, tmp_path: Path, name: str) -> None:
    vectors = np.ones((9, WIDTH), np.float32)
    vectors[5, 3] = np.nan
    out = write(tmp_path / name, embedder, vectors, make_rows(list(range(9)), ["text"] * 9))
    corpus = thalweg.open_corpus(out, model=embedder)
    for use in (corpus.vectors, lambda: corpus.search("boats")):
        with pytest.raises(CorpusError, match="not finite"):
            use()
    large = write(tmp_path / f"large-{name}", embedder, vectors[:5] * 3e38, make_rows(list(range(5)), ["text"] * 5))
    with pytest.raises(CorpusError, match="too large to compare"):
        thalweg.open_corpus(large, model=embedder).search("boats")


def test_the_model_is_found_by_the_file(embedder: thalweg.Embedder, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("boats drift")
    out = tmp_path / "out.parquet"
    summary = thalweg.embed_corpus(tmp_path / "a.txt", out, model=model_folder, device="cpu")
    assert (summary.documents, summary.rows) == (1, 1)
    corpus = thalweg.open_corpus(out)
    assert corpus.named_model == str(model_folder)
    assert corpus.search("boats")[0].row["text"] == "boats drift"
    assert thalweg.open_corpus(out, model=str(model_folder), device="cpu").named_model is None
    other = write_model(tmp_path / "other", seed=1, prompts={"a": "b"})
    with pytest.raises(CorpusError, match="pass the right --model, or embed again"):
        thalweg.open_corpus(out, model=other).search("boats")
    with pytest.raises(CheckpointError, match="nowhere"):
        thalweg.open_corpus(out, model=tmp_path / "nowhere").search("boats")


def test_special_tokens_that_differ_are_named(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("boats drift")
    out = tmp_path / "out.parquet"
    thalweg.embed_corpus([tmp_path / "a.txt"], out, model=model_folder, device="cpu", special_tokens="text")
    with pytest.raises(CorpusError, match=r"pass --special-tokens text \(in Python special_tokens='text'\)"):
        thalweg.open_corpus(out).search("boats")
    assert thalweg.open_corpus(out, special_tokens="text").search("boats")


def test_a_run_in_python_is_that_of_the_command(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for at in range(5):
        (docs / f"{at}.txt").write_text(make_text(50, at))
    (docs / "rows.jsonl").write_text('{"body": "words", "name": "first"}\n')
    seen = []
    summary = thalweg.embed_corpus(
        docs,
        tmp_path / "a.parquet",
        model=embedder,
        section_size=16,
        text_column="body",
        id_column="name",
        on_status=lambda status: seen.append(status.tokens),
    )
    run(embedder, docs, tmp_path / "b.parquet", section_size=16, columns=thalweg.corpus.Columns("body", "name"))
    a, b = rows_of(tmp_path / "a.parquet"), rows_of(tmp_path / "b.parquet")
    assert a[0] == b[0]
    assert np.abs(a[1] - b[1]).max() <= 1e-5
    assert (summary.documents, summary.rows, seen[-1]) == (6, len(a[0]), summary.new_tokens)
    assert thalweg.embed_corpus(docs / "*.txt", tmp_path / "c.npy", model=embedder, globs="*.md").documents == 5
    with pytest.raises(CorpusError, match="exists"):
        thalweg.embed_corpus(docs, tmp_path / "c.npy", model=embedder)
    again = {"model": embedder, "section_size": 16, "text_column": "body", "id_column": "name"}
    assert thalweg.embed_corpus(docs, tmp_path / "a.parquet", resume=True, **again).nothing_to_do  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"inputs": []}, "inputs is an empty list"),
        ({"inputs": [5]}, "one is 5"),
        ({"inputs": b"a"}, "must be a path"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"format": "pdf"}, "format must be one of"),
        ({"lines": True, "format": "csv"}, "exclude each other"),
        ({"prompt": "a", "prompt_name": "b"}, "exclude each other"),
        ({"precision": "float64"}, "precision must be one of"),
        ({"truncate_dim": 0}, "truncate_dim must be at least 1"),
        ({"max_length": "5"}, "max_length must be a whole number"),
        ({"save_every": -1}, "save_every must be a number"),
        ({"device": "cpu"}, "of no use with an Embedder"),
        ({"section_size": 0}, "at least 1"),
    ],
    ids=str,
)
def test_runs_that_cannot_be(embedder: thalweg.Embedder, tmp_path: Path, options: Any, reason: str) -> None:
    (tmp_path / "a.txt").write_text("words")
    arguments = {"inputs": tmp_path / "a.txt", "out": tmp_path / "out.npy", "model": embedder, **options}
    with pytest.raises(InvalidInputError, match=reason):
        thalweg.embed_corpus(**arguments)
    assert not (tmp_path / "out.npy").exists()
