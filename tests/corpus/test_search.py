"""From a query to the nearest rows, in every format and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg
from thalweg.corpus import Settings, discover, embed_corpus, read_metadata, search
from thalweg.corpus.results import read_batches
from thalweg.corpus.search import restored
from thalweg.errors import CorpusError, InvalidInputError

from .corpora import rows_of, run
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
    embed_corpus(embedder, files, out, Settings(**settings))
    return out


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_hits_are_those_of_all_rows_sorted(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str) -> None:
    out = embed(embedder, corpus, tmp_path / name)
    rows, vectors = rows_of(out)
    scores = vectors.astype(np.float32) @ embedder.encode_query(QUERY)
    best = np.argsort(-scores, kind="stable")[:7]
    hits = search(out, read_metadata(out), embedder, QUERY, 7)
    assert [hit.row["id"] for hit in hits] == [rows[i]["id"] for i in best]
    assert np.allclose([hit.score for hit in hits], scores[best], atol=1e-6)
    assert [hit.row for hit in hits] == [rows[i] for i in best]


def test_the_text_itself_is_the_nearest(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    for precision in ("float32", "int8", "uint8", "binary", "ubinary"):
        out = embed(embedder, corpus, tmp_path / f"{precision}.parquet", precision=precision)
        hits = search(out, read_metadata(out), embedder, QUERY, 3, prompt="")
        assert hits[0].row["text"] == QUERY, precision
        assert hits[0].score == pytest.approx(1, abs=0.01 if "int" in precision else 0.3)


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.005), ("uint8", 0.005), ("float32", 1e-6)])
def test_stored_numbers_are_restored(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, precision: str, error: float
) -> None:
    exact = rows_of(embed(embedder, corpus, tmp_path / "exact.parquet"))[1]
    out = embed(embedder, corpus, tmp_path / "out.parquet", precision=precision)
    metadata = read_metadata(out)
    found = np.concatenate([restored(batch.vectors, metadata) for batch in read_batches(out, metadata)])
    assert np.abs(found - exact).max() <= error


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("dimension", [32, 13])
def test_bits_are_restored_as_signs(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, precision: str, dimension: int
) -> None:
    exact = rows_of(embed(embedder, corpus, tmp_path / "exact.parquet", truncate_dim=dimension))[1]
    out = embed(embedder, corpus, tmp_path / "out.npy", precision=precision, truncate_dim=dimension)
    metadata = read_metadata(out)
    found = np.concatenate([restored(batch.vectors, metadata) for batch in read_batches(out, metadata)])
    assert np.array_equal(found, np.where(exact > 0, 1, -1))


def test_one_row_keeps_its_numbers_in_int8(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    """The range of a single row is a point in every dimension."""
    (tmp_path / "a.txt").write_text(QUERY)
    run(embedder, tmp_path / "a.txt", tmp_path / "out.parquet", precision="int8")
    (hit,) = search(tmp_path / "out.parquet", read_metadata(tmp_path / "out.parquet"), embedder, QUERY, 5, prompt="")
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_queries_are_cut_and_scaled_as_the_rows_were(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", normalize=False)
    embedder = thalweg.load(model, device="cpu")
    (tmp_path / "a.txt").write_text(QUERY)
    run(embedder, tmp_path / "a.txt", tmp_path / "out.parquet", truncate_dim=10)
    metadata = read_metadata(tmp_path / "out.parquet")
    assert (metadata.dimension, metadata.normalized) == (10, False)
    (hit,) = search(tmp_path / "out.parquet", metadata, embedder, QUERY, 1)
    assert hit.score == pytest.approx(1, abs=1e-5), "cosine, although the vectors have any length"


def test_another_models_vectors_are_refused(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = embed(embedder, corpus, tmp_path / "out.parquet", model="org/name")
    other = thalweg.load(write_model(tmp_path / "other", prompts={"x": "y"}), device="cpu")
    with pytest.raises(CorpusError, match=r"vectors of org/name \(fingerprint .*pass the right --model"):
        search(out, read_metadata(out), other, QUERY, 1)


def test_k_must_be_positive(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = embed(embedder, corpus, tmp_path / "out.parquet")
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        search(out, read_metadata(out), embedder, QUERY, 0)


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
