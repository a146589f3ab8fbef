"""From a query to the nearest rows, in every format and precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg
from thalweg.corpus import Settings, discover, embed_files, read_metadata
from thalweg.errors import CorpusError, InvalidInputError

from .corpora import rows_of, run, search
from .tiny import make_text, write_model

QUERY = "boats drift slowly"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than a reader takes at a time."""
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    lines = [make_text(3 + i % 9, i).replace("\n", " ") for i in range(1500)]
    lines[1234] = QUERY
    path.write_text("\n".join(lines) + "\n")
    return path


def embed(embedder: thalweg.Embedder, corpus: Path, out: Path, **settings: Any) -> Path:
    files, *_ = discover([str(corpus)], lines=True)
    embed_files(embedder, files, out, Settings(**settings))
    return out


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_hits_are_those_of_all_rows_sorted(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str) -> None:
    out = embed(embedder, corpus, tmp_path / name)
    rows, vectors = rows_of(out)
    scores = vectors.astype(np.float32) @ embedder.encode_query(QUERY)
    best = np.argsort(-scores, kind="stable")[:7]
    hits = search(out, embedder, QUERY, 7)
    assert [hit.row["id"] for hit in hits] == [rows[i]["id"] for i in best]
    assert np.allclose([hit.score for hit in hits], scores[best], atol=1e-6)
    assert [hit.row for hit in hits] == [rows[i] for i in best]


def test_the_text_itself_is_the_nearest(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    for precision in ("float32", "int8", "uint8", "binary", "ubinary"):
        out = embed(embedder, corpus, tmp_path / f"{precision}.parquet", precision=precision)
        hits = search(out, embedder, QUERY, 3, prompt="")
        assert hits[0].row["text"] == QUERY, precision
        assert hits[0].score == pytest.approx(1, abs=0.01 if "int" in precision else 0.3)


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.005), ("uint8", 0.005), ("float32", 1e-6)])
def test_stored_numbers_are_restored(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, precision: str, error: float
) -> None:
    exact = rows_of(embed(embedder, corpus, tmp_path / "exact.parquet"))[1]
    out = embed(embedder, corpus, tmp_path / "out.parquet", precision=precision)
    found = thalweg.open_corpus(out).vectors()
    assert np.abs(found - exact).max() <= error


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("dimension", [32, 13])
def test_bits_are_restored_as_signs(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, precision: str, dimension: int
) -> None:
    exact = rows_of(embed(embedder, corpus, tmp_path / "exact.parquet", truncate_dim=dimension))[1]
    out = embed(embedder, corpus, tmp_path / "out.npy", precision=precision, truncate_dim=dimension)
    found = thalweg.open_corpus(out).vectors()
    assert np.array_equal(found, np.where(exact > 0, 1, -1))


def test_one_row_keeps_its_numbers_in_int8(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """The range of a single row is a point in every dimension."""
    (tmp_path / "a.txt").write_text(QUERY)
    run(embedder, tmp_path / "a.txt", tmp_path / "out.parquet", precision="int8")
    (hit,) = search(tmp_path / "out.parquet", embedder, QUERY, 5, prompt="")
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_queries_are_cut_and_scaled_as_the_rows_were(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", normalize=False)
    embedder = thalweg.load(model, device="cpu")
    (tmp_path / "a.txt").write_text(QUERY)
    run(embedder, tmp_path / "a.txt", tmp_path / "out.parquet", truncate_dim=10)
    metadata = read_metadata(tmp_path / "out.parquet")
    assert (metadata.dimension, metadata.normalized) == (10, False)
    (hit,) = search(tmp_path / "out.parquet", embedder, QUERY, 1)
    assert hit.score == pytest.approx(1, abs=1e-5), "cosine, although the vectors have any length"


def test_another_models_vectors_are_refused(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = embed(embedder, corpus, tmp_path / "out.parquet", model="org/name")
    other = thalweg.load(write_model(tmp_path / "other", prompts={"x": "y"}), device="cpu")
    with pytest.raises(CorpusError, match=r"vectors of org/name \(fingerprint .*pass the right --model"):
        search(out, other, QUERY, 1)


def test_k_must_be_positive(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = embed(embedder, corpus, tmp_path / "out.parquet")
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        search(out, embedder, QUERY, 0)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", np.zeros((1, 2)))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "c.npy").write_bytes(b"")
    (tmp_path / "c.npy.meta.json").write_text("{}")
    for name, reason in {
        "a.parquet": "was not written by `thalweg embed`",
        "a.npy": "was not written by `thalweg embed`",
        "b.parquet": "not a readable Parquet file",
        "c.npy": "metadata cannot be read",
        "missing.parquet": "there is no file",
        "a.txt": "must end in",
    }.items():
        with pytest.raises(CorpusError, match=reason):
            read_metadata(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
@pytest.mark.parametrize("with_text", [True, False])
def test_rows_without_text_are_no_hits(embedder: thalweg.Embedder, tmp_path: Path, name: str, with_text: bool) -> None:
    """Blank lines stood above real ones. A stored text tells white space, without one only what is empty is known."""
    lines = tmp_path / "lines.txt"
    texts = [make_text(4, i).replace("\n", " ") for i in range(1400)]
    for i in range(0, 1400, 3):
        texts[i] = ("", " ", "\t  ")[i % 9 // 3] if with_text else ""
    lines.write_text("\n".join(texts) + "\n")
    out = embed(embedder, lines, tmp_path / name, with_text=with_text)
    rows, vectors = rows_of(out)
    for query in ("", QUERY):
        hits = search(out, embedder, query, 40, prompt="")
        scores = embedder.similarity(embedder.encode([query], prompt=""), vectors.astype(np.float32))[0]
        filled = [i for i in np.argsort(-scores, kind="stable").tolist() if texts[i].strip()]
        assert [hit.row["id"] for hit in hits] == [rows[i]["id"] for i in filled[:40]]
    assert len(search(out, embedder, QUERY, 5000)) == sum(1 for text in texts if text.strip())


def test_a_long_text_that_begins_with_white_space_is_a_hit(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """Only its beginning is stored, which does not tell it from one that is all white space."""
    (tmp_path / "a.txt").write_text(" " * 2000 + "words")
    (tmp_path / "b.txt").write_text(" " * 900)
    run(embedder, tmp_path, tmp_path / "out.parquet")
    hits = search(tmp_path / "out.parquet", embedder, "words", 5)
    assert [hit.row["id"] for hit in hits] == ["a.txt"]


@pytest.fixture(scope="module")
def honest(corpus: Path, embedder: thalweg.Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output in each format, which is then altered."""
    folder = tmp_path_factory.mktemp("honest")
    for name in ("out.parquet", "out.jsonl", "out.npy"):
        embed(embedder, corpus, folder / name)
    return folder


def altered(folder: Path, into: Path, name: str, **changes: Any) -> Path:
    """A copy of an output whose metadata says something else."""
    if name == "out.parquet":
        table = pq.read_table(folder / name)
        told = {**json.loads(table.schema.metadata[b"thalweg"]), **changes}
        pq.write_table(table.replace_schema_metadata({b"thalweg": json.dumps(told).encode()}), into / name)
    else:
        for path in folder.glob(f"{name}*"):
            shutil.copy(path, into / path.name)
        beside = into / f"{name}.meta.json"
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))
    return into / name


LIES: list[dict[str, Any]] = [
    *({"model": value} for value in (5, ["x"], True)),
    *({"precision": value} for value in ("float64", "int7", 8, None)),
    *({"dimension": value} for value in (0, -1, 5, 10**9, 10**400, "32", 1.5, True)),
    *({"ranges": value, "precision": "int8"} for value in (None, [], [[1], [2]], "x", [[float("nan")] * 32] * 2)),
    *({"precision": value} for value in ("binary", "uint8")),
    *({"rows": value} for value in (0, 1499, 1501, -1, "all")),
    *({"normalized": "yes"}, {"prompt": None}, {"run": 5}, {"section_size": "9"}, {"similarity": 3}),
    {"fingerprint": 7},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_metadata_that_was_altered_is_an_error_of_ours(
    honest: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str, lie: dict[str, Any]
) -> None:
    out = altered(honest, tmp_path, name, **lie)
    with pytest.raises(CorpusError, match=r"metadata cannot be read|is damaged"):
        search(out, embedder, QUERY, 3)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"model": null}'])
def test_metadata_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.npy").write_bytes(b"")
    (tmp_path / "out.npy.meta.json").write_bytes(content)
    with pytest.raises(CorpusError, match="metadata cannot be read"):
        read_metadata(tmp_path / "out.npy")


def test_columns_that_were_altered_are_errors_of_ours(honest: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    table = pq.read_table(honest / "out.parquet")
    numbers = pa.array(range(table.num_rows))
    vectors = table.column("vector").combine_chunks()
    n = len(vectors)
    odd = {
        "no vector": table.drop_columns(["vector"]),
        "vectors of another type": _with(table, "vector", pa.array([[0.5] * 32] * n, pa.list_(pa.float64(), 32))),
        "vectors of another length": _with(table, "vector", pa.array([[0.5] * 3] * n, pa.list_(pa.float32(), 3))),
        "lists": _with(table, "vector", pa.array([[0.5] * 32] * n, pa.list_(pa.float32()))),
        "numbers": _with(table, "vector", numbers),
        "two of them": table.append_column("vector", table.column("vector")),
        "not finite": _with(table, "vector", pa.array([[float("nan")] * 32] * n, pa.list_(pa.float32(), 32))),
        "missing": _with(table, "vector", pa.array([None] * n, pa.list_(pa.float32(), 32))),
        "ids that are numbers": _with(table, "id", numbers),
        "texts that are numbers": _with(table, "text", numbers),
        "characters that are texts": _with(table, "char_end", pa.array(["x"] * n)),
        "no characters": _with(table, "char_end", pa.nulls(n, pa.int64())),
        "no ids": table.drop_columns(["id"]),
        "ids that are no text": _with(table, "id", _no_utf8(n)),
    }
    for name, changed in odd.items():
        pq.write_table(changed, tmp_path / "out.parquet")
        print(name)
        with pytest.raises(CorpusError, match=r"is damaged|not a readable"):
            search(tmp_path / "out.parquet", embedder, QUERY, 3)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, column)


def _no_utf8(n: int) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff"] * n, pa.binary()).buffers())


@pytest.mark.parametrize("name", ["out.jsonl", "out.npy.ids.jsonl"])
def test_lines_that_were_altered_are_errors_of_ours(
    honest: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str
) -> None:
    for path in honest.iterdir():
        shutil.copy(path, tmp_path / path.name)
    out = tmp_path / name.removesuffix(".ids.jsonl")
    lines = (honest / name).read_bytes().splitlines(keepends=True)
    for line in (
        *(
            b"{}\n",
            b"5\n",
            b"\xff\n",
            b'{"vector": "x"}\n',
            b'{"vector": [1]}\n',
            b'{"vector": [1e999]}\n',
            b"[" * 100_000,
        ),
        *(json.dumps({**json.loads(lines[0]), key: 1.5}).encode() + b"\n" for key in ("id", "section", "text")),
    ):
        (tmp_path / name).write_bytes(line * 2 + b"".join(lines[2:]) if line[:1] != b"[" else line)
        with pytest.raises(CorpusError, match=r"is damaged|is not what"):
            search(out, embedder, QUERY, 2000)
    (tmp_path / name).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(CorpusError, match="is damaged"):
        search(out, embedder, QUERY, 3)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x80\x04K\x01.", None])
def test_an_array_that_was_altered_is_an_error_of_ours(
    honest: Path, embedder: thalweg.Embedder, tmp_path: Path, content: bytes | None
) -> None:
    for path in honest.glob("out.npy*"):
        shutil.copy(path, tmp_path / path.name)
    if content is None:
        np.save(tmp_path / "out.npy", np.zeros(3, np.float32))
    else:
        (tmp_path / "out.npy").write_bytes(content)
    with pytest.raises(CorpusError, match=r"is damaged|is not what"):
        search(tmp_path / "out.npy", embedder, QUERY, 3)


def test_a_flipped_bit_in_an_output_is_noticed(honest: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    content = (honest / "out.parquet").read_bytes()
    for place in range(100, len(content) // 2, len(content) // 40):
        out.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            search(out, embedder, QUERY, 2000)
        except CorpusError:
            continue
        as_it_was = search(honest / "out.parquet", embedder, QUERY, 2000)
        assert [hit[:2] for hit in search(out, embedder, QUERY, 2000)] == [hit[:2] for hit in as_it_was], (
            "or it was in a column that is not looked at"
        )
