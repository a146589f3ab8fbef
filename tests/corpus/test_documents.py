"""Files to documents: every kind, every way to be damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thalweg.corpus.documents import Document, ReadFailure, read_documents
from thalweg.corpus.records import Columns
from thalweg.errors import CorpusError
from thalweg.inputs.discover import discover
from thalweg.inputs.files import InputFile
from thalweg.inputs.streams import Meter

from .tiny import make_text


class NothingDone:
    def has(self, file: int, row: int) -> bool:
        return False


class AllDone:
    def has(self, file: int, row: int) -> bool:
        return True


def read(
    *paths: Path | str, columns: Columns | None = None, lines: bool = False
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """((id, text) of documents, (id, reason) of failures)."""
    files, *_ = discover([str(path) for path in paths], lines=lines)
    meter = Meter()
    documents, failures = [], []
    for item in read_documents(files, columns or Columns(), NothingDone(), meter):
        name = item.id.rpartition("/")[2]
        if isinstance(item, ReadFailure):
            failures.append((name, f"{'skipped: ' * item.skipped}{item.error}"))
            continue
        try:
            documents.append((name, item.text if isinstance(item.text, str) else "".join(item.text)))
        except (CorpusError, OSError) as error:
            failures.append((name, str(error)))
    assert meter.read == sum(file.size for file in files), "every byte is accounted for, read or not"
    return documents, failures


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- text files -----------------------------------------------------------------------------------------------------


def test_text_arrives_unchanged_in_pieces(tmp_path: Path) -> None:
    text = make_text(50_000) + "\r\nlast line\r"
    path = write(tmp_path / "a.txt", text)
    assert read(path) == ([("a.txt", text)], [])
    files, *_ = discover([str(path)])
    (document,) = read_documents(files, Columns(), NothingDone(), Meter())
    assert isinstance(document, Document)
    assert not isinstance(document.text, str)
    assert max(map(len, document.text)) <= 1 << 16


@pytest.mark.parametrize("size", [8191, 8192, 8193, 8190 + 65536])
def test_a_character_cut_by_a_read_is_whole(tmp_path: Path, size: int) -> None:
    text = "x" * (size - 2) + "🦢" + "y"
    assert read(write(tmp_path / "a.txt", text)) == ([("a.txt", text)], [])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfab"))[0] == [("a.txt", "ab")]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", gzip.compress(b"")], ids=["nothing", "mark", "gzip"])
def test_an_empty_file_is_skipped(tmp_path: Path, content: bytes) -> None:
    name = "a.txt.gz" if content.startswith(b"\x1f") else "a.txt"
    assert read(write(tmp_path / name, content)) == ([], [(name, "skipped: an empty file")])


@pytest.mark.parametrize("at", [0, 3, 8191, 8192, 100_000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_no_utf8_is_named_with_its_place(tmp_path: Path, at: int, mark: bytes) -> None:
    path = write(tmp_path / "a.txt", mark + b"a" * at + b"\xe9" + b"b" * 100)
    assert read(path) == ([], [("a.txt", f"not UTF-8: byte 0xe9 at offset {at + len(mark)}")])


def test_a_character_cut_by_the_end_of_the_file_is_no_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc\xf0\x9f")
    assert read(path) == ([], [("a.txt", "not UTF-8: byte 0xf0 at offset 3")])


def test_binary_and_utf16_files_are_told_apart(tmp_path: Path) -> None:
    binary, wide = write(tmp_path / "a.txt", b"ab\0c"), write(tmp_path / "b.txt", "hello".encode("utf-16"))
    _, failures = read(binary, wide)
    assert failures[0] == ("a.txt", "looks binary: a NUL byte in its first 8 KiB")
    assert failures[1] == (
        "b.txt",
        "UTF-16, not UTF-8; convert it with: iconv -f utf-16 -t utf-8",
    )


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    text = make_text(20_000)
    assert read(write(tmp_path / "a.md.gz", gzip.compress(text.encode()))) == ([("a.md.gz", text)], [])


def test_damaged_gzip_is_reported(tmp_path: Path) -> None:
    packed = gzip.compress(make_text(20_000).encode())
    flipped = packed[:2000] + bytes([packed[2000] ^ 255]) + packed[2001:]
    paths = [
        write(tmp_path / "cut.txt.gz", packed[:-500]),
        write(tmp_path / "flipped.txt.gz", flipped),
        write(tmp_path / "plain.txt.gz", b"not packed at all"),
    ]
    documents, failures = read(*paths)
    assert not documents
    assert [name for name, _ in failures] == [path.name for path in paths]
    assert "ends early" in failures[0][1]
    assert "damaged" in failures[1][1] or "not UTF-8" in failures[1][1]
    assert "damaged" in failures[2][1]


def test_a_file_that_vanishes_is_reported(tmp_path: Path) -> None:
    gone, stays = write(tmp_path / "a.txt", "a"), write(tmp_path / "b.txt", "b")
    files, *_ = discover([str(gone), str(stays)])
    gone.unlink()
    failure, document = read_documents(files, Columns(), NothingDone(), Meter())
    assert isinstance(failure, ReadFailure)
    assert isinstance(failure.error, FileNotFoundError)
    assert isinstance(document, Document)
    document.close()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    path.chmod(0)
    _, ((name, reason),) = read(path)
    assert name == "a.txt"
    assert "Permission denied" in reason


def test_stdin_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert read("-") == ([("-", "one\ntwo\n")], [])


def test_a_document_that_is_not_read_to_its_end_can_be_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", make_text(50_000))
    files, *_ = discover([str(path)])
    meter = Meter()
    (document,) = read_documents(files, Columns(), NothingDone(), meter)
    assert isinstance(document, Document)
    document.close()
    assert meter.read == path.stat().st_size


def test_finished_documents_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "abc")
    write(tmp_path / "t.jsonl", '{"text": "x"}\n')
    files, *_ = discover([str(tmp_path)])
    meter = Meter()
    assert not list(read_documents(files, Columns(), AllDone(), meter))
    assert (meter.read, meter.passed) == (14, 3)


# -- tables ---------------------------------------------------------------------------------------------------------


def test_lines_keep_their_numbers_even_when_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\ntw\xe9\nthree")
    documents, failures = read(path, lines=True)
    assert documents == [("a.txt:0", "one"), ("a.txt:1", ""), ("a.txt:3", "three")]
    assert failures == [("a.txt:2", "not UTF-8: byte 0xe9 at offset 2 of the line")]


def test_jsonl_rows_good_and_bad(tmp_path: Path) -> None:
    rows = [
        b'{"text": "one", "key": 7}',
        b"not json",
        b"[1, 2]",
        b'{"text": 5, "key": "five"}',
        b"   ",
        b'{"text": "tw\xe9"}',
        b'{"text": "\\ud800"}',
        b'{"body": "x"}',
        b'{"text": null}',
        b'{"text": ""}',
        b'{"text": "last"}',
    ]
    documents, failures = read(write(tmp_path / "t.jsonl", b"\xef\xbb\xbf" + b"\n".join(rows)))
    assert documents == [
        ("t.jsonl:0", "one"),
        ("t.jsonl:6", "x"),
        ("t.jsonl:7", ""),
        ("t.jsonl:8", ""),
        ("t.jsonl:9", "last"),
    ]
    assert [name for name, _ in failures] == [f"t.jsonl:{row}" for row in range(1, 6)]
    assert [reason.partition(":")[0] for _, reason in failures] == [f"line {n}" for n in (2, 3, 4, 6, 7)]


def test_jsonl_with_columns_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"t": "a", "key": 1}\n{"t": "b"}\n{"t": "c", "key": null}\n')
    documents, failures = read(path, columns=Columns("t", "key"))
    assert documents == [("1", "a"), ("t.jsonl:2", "c")]
    assert failures == [("t.jsonl:1", "line 2: no column 'key'; it has: t")]


def test_csv_with_quotes_line_breaks_and_long_fields(tmp_path: Path) -> None:
    long = make_text(60_000).strip()
    content = f'id,content\n1,"a ""quoted""\r\nline, with comma"\n2,\n\n3,"{long}"\n'
    documents, failures = read(write(tmp_path / "t.csv", content), columns=Columns(None, "id"))
    assert documents == [("1", 'a "quoted"\r\nline, with comma'), ("2", ""), ("3", long)]
    assert not failures


def test_a_csv_row_that_is_damaged_costs_only_itself(tmp_path: Path) -> None:
    documents, failures = read(write(tmp_path / "t.csv", b"\xef\xbb\xbfid,text\n1,a\n2\n3,caf\xe9\n4,d\n"))
    assert documents == [("t.csv:0", "a"), ("t.csv:3", "d")]
    assert failures == [
        ("t.csv:1", "line 3: 1 of 2 columns"),
        ("t.csv:2", "line 4: not UTF-8: byte 0xe9 at character 3"),
    ]


def test_tsv(tmp_path: Path) -> None:
    assert read(write(tmp_path / "t.tsv", "text\tn\na, b\t1\n"))[0] == [("t.tsv:0", "a, b")]


@pytest.mark.parametrize("name", ["t.parquet", "t.parquet.gz"])
@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, name: str, type_: pa.DataType) -> None:
    texts = [f"row {i}" for i in range(200)] + [None, ""]
    buffer = io.BytesIO()
    table = pa.table({"n": range(202), "text": pa.array(texts, type_)})
    pq.write_table(table, buffer, row_group_size=50)
    path = write(tmp_path / name, gzip.compress(buffer.getvalue()) if name.endswith(".gz") else buffer.getvalue())
    expected = [(str(i), text or "") for i, text in enumerate(texts)]
    assert read(path, columns=Columns(None, "n")) == (expected, [])


def test_parquet_that_is_none_or_has_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "2.parquet")
    write(tmp_path / "3.parquet", b"PAR1 and nothing more")
    write(tmp_path / "4.txt", "the rest goes on")
    documents, failures = read(tmp_path)
    assert documents == [("4.txt", "the rest goes on")]
    assert "it has: a, b" in failures[0][1]
    assert "--text-column" in failures[0][1]
    assert failures[1] == ("2.parquet", "column 'text' holds int64, not text")
    assert "not a readable Parquet file" in failures[2][1]


def test_a_column_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "text": ["x"]}), tmp_path / "t.parquet")
    _, failures = read(tmp_path, columns=Columns("words"))
    assert failures == [("t.parquet", "no column 'words'; it has: a, text")]
    _, failures = read(tmp_path, columns=Columns(None, "key"))
    assert failures == [("t.parquet", "no column 'key'; it has: a, text")]


def test_a_table_cut_off_in_the_middle_keeps_the_rows_before(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": make_text(20, seed)}) + "\n" for seed in range(2000))
    documents, failures = read(write(tmp_path / "t.jsonl.gz", gzip.compress(lines.encode())[:-200]))
    assert len(documents) > 1000
    assert failures[-1][0] == "t.jsonl.gz"
    assert f"rows after {len(documents) - 1} are lost" in failures[-1][1]


@pytest.mark.parametrize(("name", "content"), [("t.csv", ""), ("t.csv", "text\n"), ("t.jsonl", "\n\n")])
def test_a_table_without_rows_is_skipped(tmp_path: Path, name: str, content: str) -> None:
    assert read(write(tmp_path / name, content)) == ([], [(name, "skipped: a file without rows")])


def test_a_table_that_vanishes_is_reported() -> None:
    files = [InputFile("/nowhere/t.jsonl", "t.jsonl", "jsonl", gz=False)]
    (failure,) = read_documents(files, Columns(), NothingDone(), Meter())
    assert isinstance(failure, ReadFailure)
    assert isinstance(failure.error, FileNotFoundError)
