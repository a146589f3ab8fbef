"""Files as people really have them: nothing is lost without a word, and no file ends a run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg
from thalweg.corpus import Columns, read_metadata
from thalweg.errors import CorpusError

from .corpora import assert_same_output, rows_of, run, search
from .tiny import make_text

no_bytes = pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def failures(out: Path) -> dict[str, str]:
    path = out.with_name(f"{out.name}.failures.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}


# -- the output is whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
@pytest.mark.parametrize("size", [1, 100, 3000])
def test_rows_are_put_together_by_the_size_of_their_texts(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    """However much text lies in a part, and in however many pieces it is read: 35 of 40 rows were written."""
    (docs / "a.txt").write_text(make_text(2000))
    (docs / "t.jsonl").write_text("".join(json.dumps({"text": make_text(i)}) + "\n" for i in range(30)))
    run(embedder, docs, tmp_path / f"whole-{name}", section_size=40)
    monkeypatch.setattr("thalweg.corpus.parts.BATCH_BYTES", size)
    run(embedder, docs, tmp_path / name, section_size=40)
    assert_same_output(tmp_path / name, tmp_path / f"whole-{name}")


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_nothing_is_removed_before_all_rows_are_written(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (docs / "t.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(30)))
    run(embedder, docs, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    (docs / "more.txt").write_text("more")
    from thalweg.corpus.index import Index

    slices = Index.slices
    with monkeypatch.context() as patch:
        patch.setattr(Index, "slices", lambda self, rows, size: (each[:7] for each in slices(self, rows, size)))
        with pytest.raises(CorpusError, match=r"7 of 31 rows were written, so .* is left as it was"):
            run(embedder, docs, tmp_path / name, "overwrite")
    assert (tmp_path / name).read_bytes() == before
    run(embedder, docs, tmp_path / name, "resume")
    assert len(rows_of(tmp_path / name)[0]) == 31


def test_a_section_that_is_too_long_to_store_costs_its_document(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.corpus.passages.STORED", 150_000)
    (docs / "a.txt").write_text(make_text(40_000))
    (docs / "b.txt").write_text("short")
    run(embedder, docs, tmp_path / "out.parquet", section_size=100_000)
    assert [row["id"] for row in rows_of(tmp_path / "out.parquet")[0]] == ["b.txt"]
    assert "more than 150,000 characters" in failures(tmp_path / "out.parquet")["a.txt"]
    run(embedder, docs, tmp_path / "small.parquet", section_size=50)
    assert not failures(tmp_path / "small.parquet")
    run(embedder, docs, tmp_path / "none.parquet", section_size=100_000, with_text=False)
    assert not failures(tmp_path / "none.parquet")


# -- what was read and what was not ----------------------------------------------------------------------------------


def test_earlier_outputs_are_no_input(embedder: thalweg.Embedder, docs: Path) -> None:
    """Nor what stands beside them, nor the folder of an unfinished run."""
    (docs / "a.txt").write_text("words")
    (docs / "bad.txt").write_bytes(b"\xff")
    names = ("old.parquet", "old.jsonl", "old.npy", "OLD.parquet")
    for name in names:
        run(embedder, docs, docs / name, section_size=10)
        summary = run(embedder, docs, docs / name, "overwrite")
        assert [row["id"] for row in rows_of(docs / name)[0]] == ["a.txt"]
    (docs / "old.jsonl.meta.json").unlink()  # what it is, its rows say themselves
    (docs / "x.parquet.parts").mkdir()
    (docs / "x.parquet.parts" / "manifest.json").write_text('{"text": "a"}')
    summary = run(embedder, docs, docs / "new.parquet")
    assert [row["id"] for row in rows_of(docs / "new.parquet")[0]] == ["a.txt"]
    # 4 outputs, 4 lists of failures, metadata of .npy, its ids, and the work folder.
    assert summary.files.left_out == {"outputs of thalweg": 11}
    assert (summary.files.seen, summary.files.read, summary.files.failed) == (13, 1, 1)
    named = docs / "old.parquet"
    run(embedder, named, docs / "again.parquet")
    assert [row["text"] for row in rows_of(docs / "again.parquet")[0]] == ["words"], "but one that is named is"


def test_a_table_of_a_user_is_no_output(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "vector": [[1.0]]}), docs / "a.parquet")
    (docs / "b.jsonl").write_text(json.dumps({"id": "x", "text": "b", "vector": [1.0]}) + "\n")
    (docs / "c.jsonl").write_text('{"key": "')
    summary = run(embedder, docs, tmp_path / "out.parquet")
    assert [row["text"] for row in rows_of(tmp_path / "out.parquet")[0]] == ["a", "b"]
    assert (summary.files.read, summary.files.left_out) == (3, {})


def test_every_file_and_row_is_counted(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("a")
    (docs / "e.txt").write_text("")
    (docs / "bad.md").write_bytes(b"\xff" * 9)
    (docs / "t.jsonl").write_text('{"text": "a"}\nbad\n{"text": "b"}\n')
    (docs / "t.csv").write_text("text\nx\n")
    (docs / "h.csv").write_text("words\nx\n")
    (docs / "x.py").write_text("x")
    (docs / "nowhere.txt").symlink_to("nothing")
    summary = run(embedder, docs, tmp_path / "out.parquet")
    files = summary.files
    assert (files.seen, files.read, files.empty, files.failed, files.left_out) == (8, 3, 1, 3, {".py": 1})
    assert (summary.table_rows, summary.table_rows_failed) == (4, 1)
    assert (summary.documents, summary.failed, summary.skipped) == (4, 4, 1)


@pytest.mark.parametrize("section_size", [None, 50])
def test_counts_of_a_resumed_run_are_those_of_the_whole(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, section_size: int | None
) -> None:
    (docs / "t.jsonl").write_text("".join(json.dumps({"text": make_text(60, i)}) + "\n" for i in range(200)) + "bad\n")
    (docs / "u.txt").write_text(make_text(100))
    settings: dict[str, Any] = {"save_every": 0, "section_size": section_size, "schedule": {"max_tokens_per_step": 256}}
    with pytest.raises(CorpusError):
        run(embedder, docs, tmp_path / "out.parquet", strict=True, **settings)
    resumed = run(embedder, docs, tmp_path / "out.parquet", "resume", **settings)
    assert resumed.saved
    assert (resumed.table_rows, resumed.table_rows_failed, resumed.files.read) == (201, 1, 2)
    assert resumed.documents == 201


def test_a_json_file_in_a_folder_is_only_taken_if_it_holds_texts(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path
) -> None:
    (docs / "rows.json").write_text('[{"text": "a"}, {"text": 5}]')
    (docs / "lines.json").write_text('{"text": "b"}\n{"no": "text"}\n')
    (docs / "package.json").write_text('{\n  "name": "x",\n  "version": 1\n}')
    (docs / "min.json").write_text('{"name": "x"}')
    (docs / "comments.json").write_text('// {"text": "a"}')
    (docs / "numbers.json").write_text("[1, 2]")
    summary = run(embedder, docs, tmp_path / "out.parquet")
    assert [row["id"] for row in rows_of(tmp_path / "out.parquet")[0]] == ["lines.json:0", "rows.json:0"]
    assert summary.files.left_out == {".json": 4}
    assert set(failures(tmp_path / "out.parquet")) == {"lines.json:1", "rows.json:1"}
    (docs / "a.txt").write_text("words")
    out = tmp_path / "named.parquet"
    files = thalweg.corpus.discover([str(docs / "package.json"), str(docs / "a.txt")])
    thalweg.corpus.embed_files(embedder, files.files, out, thalweg.corpus.Settings())
    assert "no text column" in failures(out)[(docs / "package.json").as_posix() + ":0"]


def test_what_was_found_out_is_noted(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "a.csv").write_bytes("id;text\n1;déjà vu\n".encode("latin-1"))
    for i in range(12):
        (docs / f"b{i}.csv").write_text("id|text\n1|x\n")
    summary = run(embedder, docs, tmp_path / "out.parquet", columns=Columns(None, "id"))
    assert rows_of(tmp_path / "out.parquet")[0][0]["text"] == "déjà vu"
    assert summary.n_notes == 14
    assert len(summary.notes) == 10
    assert set(summary.notes[:2]) == {
        "a.csv: columns are separated by ';' (--delimiter says otherwise)",
        "a.csv: read as windows-1252 (--encoding says otherwise)",
    }


# -- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_rows_have_keys_and_repeated_ids_are_told(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, name: str
) -> None:
    rows: list[dict[str, Any]] = [{"text": f"row {i}", "n": n} for i, n in enumerate([1, "1", "a", None, 1.0, "a", 1])]
    (docs / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / name
    summary = run(embedder, docs, out, columns=Columns(None, "n"))
    found = rows_of(out)[0]
    assert [row["id"] for row in found] == ["1", "1", "a", "t.jsonl:3", "1.0", "a", "1"]
    assert [row["key"] for row in found] == ["1", "1~2", "a", "t.jsonl:3", "1.0", "a~2", "1~3"]
    assert (summary.repeated, summary.repeated_ids) == (3, ("1", "a"))
    summary = run(embedder, docs, out, "overwrite", columns=Columns(None, "n"), section_size=2)
    found = rows_of(out)[0]
    assert found[0]["key"] == "1#0"
    assert {row["key"].rpartition("#")[0] for row in found} == {"1", "1~2", "a", "t.jsonl:3", "1.0", "a~2", "1~3"}
    assert len({row["key"] for row in found}) == len(found) > 7
    hits = search(out, embedder, "row 5", 1)
    assert hits[0].row["key"].startswith(hits[0].row["id"])


def test_strict_refuses_repeated_ids_and_keeps_the_work(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "t.csv").write_text("id,text\n7,a\n8,b\n7,c\n")
    out = tmp_path / "out.parquet"
    with pytest.raises(CorpusError, match=r"1 documents have the id of an earlier one \('7'\), and --strict refuses"):
        run(embedder, docs, out, strict=True, columns=Columns(None, "id"))
    assert not out.exists()
    summary = run(embedder, docs, out, "resume", columns=Columns(None, "id"))
    assert (summary.saved, summary.new_tokens) == (3, 0)


def test_the_shipped_model_is_named_with_its_version(docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("words")
    shipped = thalweg.load(device="cpu")
    for name in (None, "default", "thalweg-small-en"):
        run(shipped, docs, tmp_path / "out.parquet", "overwrite", model=name)
        metadata = read_metadata(tmp_path / "out.parquet")
        assert (metadata.model, metadata.revision) == ("thalweg-small-en", f"thalweg {thalweg.__version__}")


def test_another_model_is_named_by_its_folder(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("words")
    run(embedder, docs, tmp_path / "out.parquet")
    assert read_metadata(tmp_path / "out.parquet").model == str(embedder.folder)


# -- no file ends the run --------------------------------------------------------------------------------------------


def test_names_of_columns_that_are_no_text(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    """They stand in messages, and these in a file of UTF-8."""
    (docs / "a.txt").write_text("words")
    (docs / "key.jsonl").write_text('{"\\ud83d": "x"}\n{"text": "good"}\n{"\\udce9\\u0000": 1}\n')
    (docs / "latin.csv").write_bytes("naïve,größe\n1,2\n".encode("latin-1"))
    (docs / "broken.csv").write_bytes("größe,Größe,".encode() + b"gr\xf6\xdfe\n1,2,3\n")
    (docs / "wide.csv").write_bytes("text,id\nx,1\n".encode("utf-16"))
    (docs / "wide.tsv").write_bytes("text\tid\nx\t1\n".encode("utf-16-be"))
    (docs / "id.jsonl").write_text('{"text": "x", "id": "\\ud800"}\n')
    out = tmp_path / "out.parquet"
    run(embedder, docs, out)
    told = failures(out)
    assert r"it has: \ud83d" in told["key.jsonl:0"]
    assert "it has: naïve, größe" in told["latin.csv"]
    assert r"gr\udcf6\udcdfe" in told["broken.csv"]
    assert told["wide.csv"].startswith("UTF-16, not UTF-8; convert it with")
    assert "binary" in told["wide.tsv"]
    assert [row["id"] for row in rows_of(out)[0]] == ["a.txt", "id.jsonl:0", "key.jsonl:1"]
    run(embedder, docs, out, "overwrite", columns=Columns("text", "id"))
    assert "lone surrogate" in failures(out)["id.jsonl:0"]


@no_bytes
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_names_that_are_no_utf8(embedder: thalweg.Embedder, tmp_path: Path, name: str) -> None:
    """Of input files, and of the folder that is written to: found out after all the work was done."""
    docs = tmp_path / "docs-\udce9"
    docs.mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "t.parquet")
    shutil.move(tmp_path / "t.parquet", docs / "t\udcff.parquet")
    (docs / "bad\udce9.txt").write_bytes(b"\xff")
    (docs / "good.txt").write_text(make_text(300))
    (tmp_path / "out\udce9").mkdir()
    out = tmp_path / "out\udce9" / name
    with pytest.raises(CorpusError, match="--strict"):
        run(embedder, docs, out, strict=True, section_size=20, save_every=0, schedule={"max_tokens_per_step": 64})
    run(embedder, docs, out, "resume", section_size=20)
    assert run(embedder, docs, out, "resume", section_size=20).nothing_to_do
    with open(out, "rb") as stream:  # by Python, as pyarrow takes no such name
        rows = pq.read_table(stream).to_pylist() if name == "out.parquet" else rows_of(out)[0]
    assert {row["id"] for row in rows} == {"good.txt", r"t\xff.parquet:0", r"t\xff.parquet:1"}
    assert {row["path"] for row in rows} == {rf"{tmp_path}/docs-\xe9/{name}" for name in ("good.txt", r"t\xff.parquet")}
    assert set(failures(out)) == {r"bad\xe9.txt"}
    assert search(out, embedder, "two", 1)[0].row["text"]


@no_bytes
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_a_model_whose_name_is_no_utf8(embedder: thalweg.Embedder, docs: Path, tmp_path: Path, name: str) -> None:
    (docs / "a.txt").write_text("words")
    (tmp_path / "model\udce9").mkdir()
    run(embedder, docs, tmp_path / name, model=str(tmp_path / "model\udce9"))
    assert read_metadata(tmp_path / name).model == str(tmp_path / "model\udce9")


def test_links_and_files_that_are_none(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("words")
    (docs / "loop.txt").symlink_to("loop.txt")
    (docs / "loop.jsonl").symlink_to("loop.jsonl")
    (docs / "nowhere.csv").symlink_to("nothing.csv")
    out = tmp_path / "out.parquet"
    run(embedder, docs, out)
    assert set(failures(out)) == {"loop.txt", "loop.jsonl", "nowhere.csv"}
    assert "symbolic links" in failures(out)["loop.txt"]


class Unforeseen(Exception):
    """Stands for what nobody has thought of."""


@pytest.mark.parametrize("where", ["text_pieces", "opened_text", "read_records", "late"])
def test_a_reader_that_fails_unforeseen_costs_its_file_and_is_reported(
    embedder: thalweg.Embedder,
    docs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    from thalweg.corpus import documents

    (docs / "a.txt").write_text(make_text(200))
    (docs / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (docs / "z.txt").write_text("the last")
    name = "text_pieces" if where == "late" else where
    real = getattr(documents, name)
    calls = [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            return real(*arguments, **options)
        if where == "late":
            return late(*arguments)
        raise Unforeseen("no idea")

    def late(stream: Any) -> Iterator[str]:
        yield "the beginning"
        raise Unforeseen("no idea")

    out = tmp_path / "out.parquet"
    failed = "t.jsonl" if where == "read_records" else "a.txt"
    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "thalweg"):
        patch.setattr(documents, name, failing)
        summary = run(embedder, docs, out)
        assert "no idea" in caplog.text
        assert "Traceback" in caplog.text
        calls[0] = 0
        with pytest.raises(CorpusError, match=r"Unforeseen: no idea.*--strict stops here"):
            run(embedder, docs, tmp_path / "strict.parquet", strict=True)
    assert failures(out) == {
        failed: "Unforeseen: no idea; this is a bug of thalweg, please report it (--debug shows where it is)"
    }
    assert (summary.failed, summary.files.failed, summary.files.read) == (1, 1, 2)
    assert len(rows_of(out)[0]) == (2 if failed == "t.jsonl" else 3)


def test_stdin_that_is_closed(embedder: thalweg.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="-: stdin is closed; pipe something into it, or name a file"):
        run(embedder, Path("-"), tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "PDF, not text; convert it first: pdftotext"),
        ("a.docx", b"PK\x03\x04" + b"\0" * 26 + b"word/document.xml", "DOCX, not text; convert it first: pandoc"),
        ("a.xlsx", b"PK\x03\x04" + b"\0" * 26 + b"xl/workbook.xml", "XLSX, not text; save its sheets as CSV"),
        ("a.zip", b"PK\x03\x04" + b"\0" * 26 + b"a.txt", "ZIP, not text; unpack it first"),
        ("a.epub", b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/epub+zip", "EPUB, not text"),
        ("a.md", b"{\\rtf1 hello}", "RTF, not text"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file"),
        ("a.txt", b"\x1f\x8b\x08", "gzip, not text; give it a name that ends in .gz"),
        ("a.txt", b"PAR1....", "Parquet, not text; give it a name that ends in .parquet"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "a PNG picture, not text"),
        ("a.jsonl", b"%PDF-1.4", "PDF, not text"),
        ("a.csv", b"PK\x03\x04" + b"\0" * 26 + b"xl/workbook.xml", "XLSX, not text"),
    ],
)
def test_what_is_no_text_is_told_what_it_is(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (docs / name).write_bytes(content)
    with pytest.raises(CorpusError, match="no document could be embedded") as caught:
        run(embedder, docs / name, tmp_path / "out.parquet")
    assert told in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("target", ["nothing.parquet", "out.parquet", "there.parquet"])
@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_an_output_that_is_a_link_is_left_one(
    embedder: thalweg.Embedder, docs: Path, tmp_path: Path, target: str, mode: Any
) -> None:
    """To nowhere, to itself, or to a file."""
    (docs / "a.txt").write_text("words")
    (tmp_path / "there.parquet").write_text("mine")
    (tmp_path / "out.parquet").symlink_to(target)
    with pytest.raises(CorpusError, match=f"out.parquet is a link to '{target}'; name what it leads to"):
        run(embedder, docs, tmp_path / "out.parquet", mode)
    assert (tmp_path / "out.parquet").is_symlink()
    assert (tmp_path / "there.parquet").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "out.parquet", "there.parquet"]


def test_outputs_may_be_named_in_capitals(embedder: thalweg.Embedder, docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("words")
    for name in ("OUT.PARQUET", "OUT.JSONL", "OUT.NPY"):
        run(embedder, docs, tmp_path / name)
        (hit,) = search(tmp_path / name, embedder, "words", 3)
        assert hit.row["text"] == "words"
    assert np.load(tmp_path / "OUT.NPY").shape == (1, 32)
