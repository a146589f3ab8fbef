"""Every format as people really write it: what is a row is one, and what is none is named with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import CorpusError, InvalidInputError
from thalweg.inputs import streams
from thalweg.inputs.delimited_rows import check_delimiter
from thalweg.inputs.discover import Reading, discover
from thalweg.inputs.encodings import check_encoding, guess
from thalweg.inputs.formats import FORMATS, SUFFIXES, kind_of, read_rows, split_suffix
from thalweg.inputs.rows import Header

DOCS = Path(__file__).parent.parent.parent / "docs"


def read(
    path: Path, content: bytes | str, column: str = "text", **reading: Any
) -> tuple[list[Any], list[str], list[str]]:
    """(texts by rows, what is said of rows that are none and of the file, notes)."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (file,) = discover([str(path)], reading=Reading(**reading)).files
    texts: list[Any] = []
    told: list[str] = []
    notes: list[str] = []

    def select(header: Header) -> list[str]:
        if column not in header.names:
            raise CorpusError(f"no {column} in {', '.join(header.names)}")
        return [column]

    try:
        for number, row in enumerate(read_rows(file, select, on_note=notes.append)):
            assert row.number == number
            if isinstance(row.values, CorpusError):
                told.append(f"{row.line}: {row.values}")
            else:
                texts.append(row.values[column])
    except CorpusError as error:
        told.append(f"file: {error}")
    return texts, told, notes


# -- the table ------------------------------------------------------------------------------------------------------


def test_suffixes_belong_to_one_format_each() -> None:
    assert len(SUFFIXES) == len(set(SUFFIXES))
    for each in FORMATS:
        for suffix in each.suffixes:
            assert kind_of(f"a{suffix}") == kind_of(f"A.B{suffix.upper()}.GZ") == each.name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("A.b.JSONL.gz", ("A.b", ".jsonl", True)),
        ("x", ("x", "", False)),
        ("x.gz", ("x", "", True)),
        (".csv", (".csv", "", False)),
        ("a.GZ.csv", ("a.GZ", ".csv", False)),
    ],
)
def test_names_are_taken_apart(name: str, parts: tuple[str, str, bool]) -> None:
    assert split_suffix(name) == parts


@pytest.mark.parametrize("page", ["command-line.md", "training-data.md"])
def test_the_documents_name_every_suffix(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    wanted = SUFFIXES if page == "command-line.md" else [suffix for each in FORMATS[2:] for suffix in each.suffixes]
    assert not [suffix for suffix in wanted if f"`{suffix}`" not in text]


# -- JSON -----------------------------------------------------------------------------------------------------------

ROWS = [{"text": "one"}, {"text": 'tw"o\n', "n": [1, {"a": 2}]}, {"text": "", "x": None}, {"text": "三 🦢"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".json", ".JSONL", ".Ndjson.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_object_a_line(tmp_path: Path, suffix: str, mark: bytes) -> None:
    content = mark + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    content = gzip.compress(content) if suffix.lower().endswith(".gz") else content
    assert read(tmp_path / f"a{suffix}", content) == ([row["text"] for row in ROWS], [], [])


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n\n\t"])
def test_an_array_of_objects(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    content = mark + json.dumps(ROWS, indent=indent, ensure_ascii=indent == 0).encode() + b"\n "
    assert read(tmp_path / "a.json", content) == ([row["text"] for row in ROWS], [], [])


def test_objects_over_several_lines(tmp_path: Path) -> None:
    content = "\n".join(json.dumps(row, indent=1) for row in ROWS)
    assert read(tmp_path / "a.json", content) == ([row["text"] for row in ROWS], [], [])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.floats(allow_nan=False) | st.none()),
        max_size=8,
    ),
    indent=st.none() | st.integers(0, 3),
    as_array=st.booleans(),
    piece=st.integers(1, 40),
)
def test_json_is_read_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int, as_array: bool, piece: int
) -> None:
    """However it is laid out, and wherever a read ends."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    rows = [{"text": f"row {number}", **row} for number, row in enumerate(rows)]
    if as_array:
        path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row, indent=indent) for row in rows), encoding="utf-8")
    (file,) = discover([str(path)]).files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thalweg.inputs.json_rows.PIECE", piece)
        assert [row.values for row in read_rows(file, lambda header: [])] == rows


@pytest.mark.parametrize(
    ("content", "texts", "told"),
    [
        ('[{"text": "a"}, 5, {"text": "b"}]', ["a", "b"], ["None: a JSON object was expected, not int"]),
        ('[{"text": "a"}, {"text": "b"', ["a"], ["file: not JSON: Expecting ',' delimiter"]),
        ('[{"text": "a"}, {"text": "b"}', ["a", "b"], ["file: not JSON: the array does not end"]),
        ('[{"text": "a"} {"text": "b"}]', ["a"], ["file: not JSON: ',' or ']' expected, not '{'"]),
        ('[{"text": "a"}] x', ["a"], ["file: not JSON: 'x' after the end of the array"]),
        ('[{"text": "a"},]', ["a"], ["file: not JSON: Expecting value"]),
        ("[" * 100_000, [], ["file: not JSON: maximum recursion depth"]),
        ('{"text": "a"}\nno\n{"text": "b"}', ["a", "b"], ["2: not JSON: Expecting value"]),
        ('{"text": "a"}\n{"text": 5e', ["a"], ["2: not JSON"]),
        ("", [], []),
        (" \n ", [], []),
        ("[]", [], []),
    ],
)
def test_damaged_json(tmp_path: Path, content: str, texts: list[str], told: list[str]) -> None:
    found = read(tmp_path / "a.json", content)
    assert found[0] == texts
    assert len(found[1]) == len(told)
    assert all(a.startswith(b) for a, b in zip(found[1], told, strict=True)), found[1]


def test_an_array_in_a_file_of_lines_is_told_of_the_format(tmp_path: Path) -> None:
    _, told, _ = read(tmp_path / "a.jsonl", json.dumps(ROWS))
    assert told == ["1: a JSON object was expected, not list; an array of rows belongs into a .json file"]
    assert read(tmp_path / "b.jsonl", json.dumps(ROWS), format="json")[0] == [row["text"] for row in ROWS]


# -- CSV and TSV ----------------------------------------------------------------------------------------------------


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    """Texts that begin with a quote glued 5 rows to 2."""
    texts = ['"one', "two", 'th"ree"', '"four', '"five"']
    content = "id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))
    for suffix in (".tsv", ".tab", ".TSV"):
        assert read(tmp_path / f"a{suffix}", content) == (texts, [], [])


def test_a_quote_that_never_closes_is_named_with_its_line(tmp_path: Path) -> None:
    texts, told, _ = read(tmp_path / "a.csv", 'id,text\n0,zero\n1,"a\nb"\n2,"first\n3,second\n4,third\n')
    assert texts == ["zero", "a\nb"]
    assert told == ["5: the quote that opens in line 5 is never closed, so the rest of the file is one row"]
    _, told, _ = read(tmp_path / "b.csv", 'a,text\n"1\n2","x\ny')
    assert told == ["2: the quote that opens in line 3 is never closed, so the rest of the file is one row"]
    _, told, _ = read(tmp_path / "c.csv", 'text,"x\na,b\n')
    assert told == ["file: line 1: the quote that opens in line 1 is never closed, so the rest of the file is one row"]


def test_a_wrong_quote_costs_its_row_only(tmp_path: Path) -> None:
    content = 'text,n\n"a"b,1\ntwo,2\n"x"y,"1\n2"\n"three ""3""",3\nfo"ur,4\n'
    texts, told, _ = read(tmp_path / "a.csv", content)
    assert texts == ["two", 'three "3"', 'fo"ur']
    assert [each[:12] for each in told] == ["2: not CSV: ", "4: not CSV: "]


def test_fields_without_a_column_are_named_and_empty_ones_are_none(tmp_path: Path) -> None:
    texts, told, _ = read(tmp_path / "a.csv", "id,text\n1,a\n2,b, and c\n3,d,,\n4\n5,e\n")
    assert texts == ["a", "d", "e"]
    assert told == [
        "3: 3 columns, but the header names 2; quote a text that holds the delimiter",
        "5: 1 of 2 columns",
    ]
    _, told, _ = read(tmp_path / "a.tsv", "id\ttext\n1\ta\tb\n")
    assert told == ["2: 3 columns, but the header names 2"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_delimiter_and_encoding_are_recognised_and_told(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [["id", "text"], ["1", "déjà, vu"], ["2", f'"Straße{delimiter} 5"'], ["3", "plain"]]
    content = "\n".join(delimiter.join(row) for row in rows).encode(encoding)
    texts, told, notes = read(tmp_path / "a.csv", content)
    assert (texts, told) == (["déjà, vu", f"Straße{delimiter} 5", "plain"], [])
    expected = ["read as windows-1252 (--encoding says otherwise)"] * (encoding == "latin-1")
    assert sorted(notes) == sorted([f"columns are separated by {delimiter!r} (--delimiter says otherwise)", *expected])


def test_a_comma_is_taken_where_it_finds_the_column(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "text,a;b\nx;y,1\n") == (["x;y"], [], [])
    assert read(tmp_path / "b.csv", "a;text\n1;x,y\n", delimiter=",") == ([], ["file: no text in a;text"], [])
    assert read(tmp_path / "c.csv", "a#text\n1#x,y\n", delimiter="#") == (["x,y"], [], [])
    assert read(tmp_path / "d.csv", "a;b\n1;2\n")[1] == ["file: no text in a;b"]
    assert read(tmp_path / "e.csv", "sep=;\r\na;text\r\n1;x,y\r\n")[0] == ["x,y"]
    assert read(tmp_path / "f.tsv", "a;text\n1;x\ty\n", delimiter=";") == (["x\ty"], [], [])


def test_a_header_may_stand_below_blank_lines_and_hold_quotes(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", '\n\r\n"te""xt",id\na,1\n', 'te"xt')[0] == ["a"]
    assert read(tmp_path / "b.csv", '"te\nxt",id\na,1\n', "te\nxt")[0] == ["a"]
    assert read(tmp_path / "c.csv", "\n\n") == ([], [], [])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_line(tmp_path: Path, end: str) -> None:
    assert read(tmp_path / "a.csv", end.join(["id,text", "1,a", '2,"b', 'c"', ""])) == (["a", f"b{end}c"], [], [])


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "text,text\na,b\n")[1] == ["file: 2 columns are called 'text'; rename all but one"]
    assert read(tmp_path / "b.csv", "n,text,n\n1,a,2\n")[0] == ["a"]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=2)
    ),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str, end: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["id", "text"], *rows])
    texts, told, _ = read(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue())
    assert (texts, told) == ([row[1] for row in rows], [])


def test_bytes_that_are_no_utf8_cost_a_row_where_the_file_is_utf8(tmp_path: Path) -> None:
    content = "id,text\n1,naïve façade\n".encode() + b"2,caf\xe9\n3,\xc3\xa9t\xc3\xa9\n"
    texts, told, notes = read(tmp_path / "a.csv", content)
    assert texts[::2] == ["naïve façade", "été"]
    assert "\udce9" in texts[1], "the row says itself what it is"
    assert not told
    assert not notes


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "shift_jis", "gb18030", "euc-kr", "iso8859-7"])
def test_other_encodings_are_not_mistaken_for_western_ones(encoding: str) -> None:
    text = {
        "cp1251": "Привет, мир",
        "koi8-r": "Привет, мир",
        "shift_jis": "こんにちは世界",
        "gb18030": "你好世界",
        "euc-kr": "안녕하세요",
        "iso8859-7": "Καλημέρα",
    }[encoding]
    english = "and a long text in English around it " * 20
    for around in ("id;text\n1;{}\n", f"id;text\n1;{english}{{}} {english}\n"):
        assert guess(around.format(text).encode(encoding)) == "utf-8"
    assert guess(f"id;text\n1;{text}\n".encode()) == "utf-8"
    for western in ("don’t – naïve", "Größe;Länge;Straße", "été", "crème brûlée, œufs", "„Grüße“", "¿Qué? ¡Ñandú!"):
        assert guess(f"id;text\n1;{western}\n".encode("cp1252")) == "windows-1252"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1251", "shift_jis", "gb18030"])
def test_an_encoding_can_be_named(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = {"latin-1": "déjà vu", "cp1251": "Привет"}.get(encoding, "こんにちは")
    lines = {
        ".csv": f"id,text\n1,{text}\n",
        ".tsv": f"id\ttext\n1\t{text}\n",
        ".jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\n",
        ".txt": f"{text}\n",
    }
    format_ = "lines" if suffix == ".txt" else None
    found = read(tmp_path / f"a{suffix}", lines[suffix].encode(encoding), encoding=encoding, format=format_)
    assert found == ([text], [], [])


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    texts, told, _ = read(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\x81"}\n', encoding="cp1252")
    assert texts == ["a"]
    assert told == ["2: not UTF-8: byte 0x81 at offset 10 of the line"]
    texts, told, _ = read(tmp_path / "b.jsonl", '{"text": "a"}\n'.encode("utf-16") + b"x", encoding="utf-16")
    assert told == ["file: not utf-16: truncated data (0x78); --encoding says otherwise"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_tables_that_are_no_text_get_the_hints_of_texts(tmp_path: Path, suffix: str) -> None:
    _, told, _ = read(tmp_path / f"a{suffix}", "text\nx\n".encode("utf-16"))
    assert told == ["file: UTF-16, not UTF-8; convert it with: iconv -f utf-16 -t utf-8"]
    assert read(tmp_path / f"b{suffix}", b"text\n\0\n")[1] == ["file: looks binary: a NUL byte in its first 8 KiB"]
    assert read(tmp_path / f"c{suffix}", b"%PDF-1.7 \xe2")[1][0].startswith("file: PDF, not text; convert it first")


@pytest.mark.parametrize("name", ["utf-9", "", "rot13", "hex", "a\0b", "utf-8x"])
def test_an_encoding_that_is_none(name: str) -> None:
    with pytest.raises(InvalidInputError, match="there is no encoding"):
        check_encoding(name)


def test_a_delimiter_that_is_none() -> None:
    assert [check_delimiter(name) for name in (";", "tab", "TAB", "\\t", "\t")] == [";", "\t", "\t", "\t", "\t"]
    for name in ("", ";;", '"', "\n", " "):
        with pytest.raises(InvalidInputError, match="a delimiter is one character"):
            check_delimiter(name)


# -- Parquet --------------------------------------------------------------------------------------------------------


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def bad_strings(n: int, bad: set[int]) -> pa.Array:
    """Some of which are no UTF-8, which Arrow does not check."""
    values = [b"caf\xe9" if number in bad else f"row {number}".encode() for number in range(n)]
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), n, binary.buffers())


@pytest.mark.parametrize("suffix", [".parquet", ".PARQUET", ".parquet.gz"])
def test_one_value_that_is_no_utf8_costs_its_row_only(tmp_path: Path, suffix: str) -> None:
    content = parquet(pa.table({"text": bad_strings(700, {64, 399})}))
    texts, told, _ = read(tmp_path / f"a{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    assert texts == [f"row {number}" for number in range(700) if number not in (64, 399)]
    assert told == ["None: column 'text': not UTF-8: byte 0xe9 at offset 3 of the text"] * 2


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
        pa.null(),
    ],
)
def test_every_type_of_text(tmp_path: Path, type_: pa.DataType) -> None:
    values = [None, None] if type_ == pa.null() else ["a", None]
    assert read(tmp_path / "a.parquet", parquet(pa.table({"text": pa.array(values, type_)})))[0] == values


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    twice = parquet(pa.Table.from_arrays(columns, names=["text", "text", "n"]))
    assert read(tmp_path / "a.parquet", twice)[1] == ["file: 2 columns are called 'text'; rename all but one"]
    other = parquet(pa.Table.from_arrays(columns, names=["n", "text", "n"]))
    assert read(tmp_path / "b.parquet", other) == (["b"], [], [])


def test_parquet_by_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.parquet"
    assert read(path, parquet(pa.table({"text": ["a"]})))[0] == ["a"]


def test_values_that_python_has_not(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([1, 2**60], pa.timestamp("ms"))})
    texts, told, _ = read(tmp_path / "a.parquet", parquet(table))
    assert len(texts) == 1
    assert told[0].startswith("None: column 'text': a value that cannot be read: ")


@pytest.mark.parametrize("cut", [0, 4, 20, -1, -8, 200])
def test_damaged_parquet(tmp_path: Path, cut: int) -> None:
    content = bytearray(parquet(pa.table({"text": [f"row {i}" for i in range(300)]})))
    if cut == 200:
        content[200:260] = bytes(60)
    texts, told, _ = read(tmp_path / "a.parquet", bytes(content[:cut] if cut != 200 else content))
    assert len(told) == 1 or len(texts) + len(told) == 300


# -- rows without end -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> int:
    """So that a row without end is short."""
    for module in ("streams", "json_rows", "delimited_rows"):
        monkeypatch.setattr(f"thalweg.inputs.{module}.MAX_ROW", 100_000)
    return 100_000


def long(n: int) -> str:
    return "".join(random.Random(n).choices("abc ", k=n)).strip()


@pytest.mark.parametrize(
    ("name", "content", "texts", "told"),
    [
        ("a.jsonl", lambda x: f'{{"text": "a"}}\n{{"text": "{x}"}}\n{{"text": "b"}}\n', ["a", "b"], ["2: longer than"]),
        ("a.json", lambda x: f'[{{"text": "a"}}, {{"text": "{x}"}}, {{"text": "b"}}]', ["a"], ["file: longer than"]),
        ("a.csv", lambda x: f'n,text\n1,a\n2,"{x}"\n3,b\n', ["a"], ["file: line 3: longer than"]),
        ("a.csv", lambda x: 'n,text\n1,a\n2,"x\n' + "3,b\n" * 40_000, ["a"], ["file: line 3: longer than"]),
        ("a.tsv", lambda x: f"n\ttext\n1\ta\n2\t{x}\n3\tb\n", ["a"], ["file: line 3: longer than"]),
        ("a.csv", lambda x: f"n{x},text\n1,a\n", [], ["file: line 1: longer than"]),
    ],
)
def test_a_row_without_end_is_not_taken_into_memory(
    tmp_path: Path, small_rows: int, name: str, content: Callable[[str], str], texts: list[str], told: list[str]
) -> None:
    """Up to the bound it is read, beyond it is named; lines are found again after it."""
    short = read(tmp_path / f"short-{name}", content(long(small_rows // 2)))
    if "3,b\n3" not in content(""):
        assert not short[1]
    found = read(tmp_path / name, content(long(2 * small_rows)))
    assert found[0] == texts
    assert len(found[1]) == len(told)
    assert found[1][0].startswith(told[0])


def test_lines_of_any_length_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_ROW", 10)
    for n in (8, 9, 10, 11, 25, 100_000):
        content = b"a\n" + b"x" * n + b"\nb\n" + b"y" * n
        lines = [
            line if isinstance(line, bytes) else b"too long"
            for line in streams.text_lines(io.BufferedReader(io.BytesIO(content)))
        ]
        fits = [b"x" * n + b"\n", b"y" * n]
        assert lines == [
            b"a\n",
            fits[0] if n <= 9 else b"too long",
            b"b\n",
            fits[1] if n <= 10 else b"too long",
        ]
