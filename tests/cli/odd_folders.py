"""Folders of random odd files, and what has to come of them. What is expected is known from how a file is made."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = (
    *("river", "naïve", "façade", "水", "🦢", "12", "bridges;", "„quoted“", "—", "emoji,", '"marks"', "'more'", "|"),
    *("Ωmega", "a\tb", '"', "x;y,z"),
)


@dataclass
class Expected:
    """What has to come of a folder: the texts that are embedded, files by what became of them, rows of tables."""

    texts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    empty: int = 0
    failed: int = 0
    rows: int = 0
    rows_failed: int = 0

    def row(self, text: str | None) -> None:
        """A row of a table; None: one that is named as failed."""
        self.rows += 1
        if text is None:
            self.rows_failed += 1
        else:
            self.texts[text] += 1


def some_text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))


# Each writes one file below a folder, under a name without suffix, and says what is expected of it.


def text_file(rng: random.Random, path: Path, expected: Expected) -> None:
    text = rng.choice(["", " ", "\n"]) + some_text(rng) + rng.choice(["", "\n", "\r\n", "\r"]) + "end"
    content = rng.choice([b"", b"\xef\xbb\xbf"]) + text.encode()
    kind = rng.randrange(9)
    if kind == 0:
        content = rng.choice([b"", b"\xef\xbb\xbf"])
        expected.empty += 1
    elif kind == 1:
        at = rng.randrange(len(content) + 1)
        content = content[:at] + b"\xff" + content[at:]
        expected.failed += 1
    elif kind == 2:
        content = rng.choice(
            [text.encode("utf-16"), text.encode("utf-32"), b"a\0b", b"%PDF-1.4", b"PK\x03\x04\0", b"\x1f\x8b"]
        )
        expected.failed += 1
    else:
        expected.texts[text] += 1
    packed = rng.random() < 0.2
    if packed and rng.random() < 0.3:
        content = rng.choice([b"no gzip", gzip.compress(content or b"x")[:-6]])
        if kind == 0:
            expected.empty -= 1
        elif kind > 2:
            expected.texts[text] -= 1
        expected.failed += kind in (0, *range(3, 9))
    elif packed:
        content = gzip.compress(content)
    write(path, rng.choice([".txt", ".md", ".TXT", ".Md"]) + ".gz" * packed, content)


def json_value(rng: random.Random, expected: Expected, *, good: bool = False) -> bytes:
    """A JSON value that is a row, or none."""
    text = some_text(rng)
    kind = 0 if good else rng.randrange(10)
    values: dict[int, Any] = {6: [1], 7: 5, 8: {"text": 5}, 9: {"words": text}}
    if kind < 4:
        expected.row(text)
        return json.dumps({"n": 1, "text": text}, ensure_ascii=rng.random() < 0.5).encode()
    if kind == 4:
        expected.row("")
        return b'{"text": null}'
    expected.row(None)
    if kind == 5:
        return rng.choice([b'{"text": "a", "text": "b"}', b'{"text": "\\ud83d"}', b'{"\\ud83d": 1}'])
    return json.dumps(values[kind]).encode()


def json_lines(rng: random.Random, path: Path, expected: Expected) -> None:
    lines = []
    for _ in range(rng.randint(0, 6)):
        kind = rng.randrange(6)
        if kind == 0:
            lines.append(rng.choice([b"", b"  ", b"\t"]))
        elif kind == 1:
            lines.append(rng.choice([b"{", b"no json", b'{"text": "caf\xe9"}', b"[" * 5000, b"\xff"]))
            expected.row(None)
        else:
            lines.append(json_value(rng, expected))
    expected.empty += not any(line.strip() for line in lines)
    content = rng.choice([b"", b"\xef\xbb\xbf"]) + rng.choice([b"\n", b"\r\n"]).join(lines)
    save(rng, path, rng.choice([".jsonl", ".ndjson", ".jsonlines", ".JSONL"]), content)


def json_file(rng: random.Random, path: Path, expected: Expected) -> None:
    """A .json file; in a folder one that does not begin with a row is not meant."""
    kind = rng.randrange(5)
    if kind == 0:
        expected.left_out[".json"] += 1
        content = rng.choice([b'{\n "name": "x"\n}', b"[1, 2]", b"// no", b"5", b'{"a": 1}', b"[" * 5000, b'"text"'])
    elif kind == 1:
        expected.empty += 1
        content = rng.choice([b"", b"\n \n", b"[]", b" [ ] ", b"\xef\xbb\xbf"])
    else:
        values = [json_value(rng, expected, good=number == 0) for number in range(rng.randint(1, 5))]
        if kind == 2:
            content = b"\n".join(values)
        else:
            space = rng.choice([b"", b"\n", b"  "])
            content = b"[" + space + (b"," + space).join(values) + space
            if kind == 3:
                content += b"]"
            else:
                expected.failed += 1
                content += rng.choice([b"", b",", b", {", b"] more", b' {"text": 1}]'])
    save(rng, path, rng.choice([".json", ".Json"]), content)


def csv_file(rng: random.Random, path: Path, expected: Expected) -> None:
    delimiter = rng.choice(",;|\t")
    end = rng.choice(["\n", "\r\n"])
    if rng.random() < 0.15:
        expected.failed += 1
        content = delimiter.join(["some", "other", "columns"]) + end + delimiter.join("abc") + end
        save(rng, path, ".csv", content.encode(rng.choice(["utf-8", "utf-16"])))
        return
    lines = [delimiter.join(["number of the row", "text"])]
    n = 0
    for number in range(rng.randint(0, 6)):
        text = some_text(rng)
        kind = rng.randrange(10)
        if kind == 0:
            lines.append("")
            continue
        n += 1
        if kind < 6:
            text = rng.choice([text, f"{text}{end}{text}", f"{text}\n", ""])
            expected.row(text)
            lines.append(csv_line([str(number), text], delimiter))
        elif kind == 6:
            expected.row(None)
            lines.append(csv_line([str(number), text, "too many"], delimiter))
        elif kind == 7:
            expected.row(text)
            lines.append(csv_line([str(number), text, "", ""], delimiter))
        elif kind == 8:
            expected.row(None)
            lines.append("1")
        else:
            expected.row(None)
            lines.append(f'{number}{delimiter}"a"b')
    if rng.random() < 0.15:
        n += 1
        expected.row(None)
        lines += [f'{number_of(rng)}{delimiter}"never closed', f"1{delimiter}x", ""]
    expected.empty += not n
    content = end.join(lines) + rng.choice(["", end])
    save(rng, path, rng.choice([".csv", ".CSV"]), rng.choice([b"", b"\xef\xbb\xbf"]) + content.encode())


def number_of(rng: random.Random) -> int:
    return rng.randrange(100)


def csv_line(values: list[str], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(values)
    return text.getvalue()[: -len("\r\n")]


def latin_file(rng: random.Random, path: Path, expected: Expected) -> None:
    """In an encoding that nobody speaks of."""
    lines = ["the number;text"]
    for number in range(rng.randint(1, 4)):
        text = rng.choice(["Größe und Länge", "déjà vu, naïve", "plain words", "crème brûlée", "¿Qué pasa?"])
        lines.append(f"{number};{text}")
        expected.row(text)
    save(rng, path, ".csv", "\n".join(lines).encode("latin-1"))


def tsv_file(rng: random.Random, path: Path, expected: Expected) -> None:
    lines = ["n\ttext"]
    n = 0
    for number in range(rng.randint(0, 6)):
        text = some_text(rng).replace("\t", " ")
        kind = rng.randrange(6)
        if kind == 0:
            lines.append("")
            continue
        n += 1
        if kind < 4:
            text = rng.choice(["", '"']) + text + rng.choice(["", '"'])
            expected.row(text)
            lines.append(f"{number}\t{text}")
        else:
            expected.row(None)
            lines.append(rng.choice([f"{number}", f"{number}\t{text}\tmore"]))
    expected.empty += not n
    save(rng, path, rng.choice([".tsv", ".tab"]), "\n".join(lines).encode())


def parquet_file(rng: random.Random, path: Path, expected: Expected) -> None:
    texts: list[str | None] = [rng.choice([None, some_text(rng), ""]) for _ in range(rng.randint(0, 5))]
    kind = rng.randrange(7)
    table = pa.table({"n": range(len(texts)), "text": pa.array(texts, pa.string())})
    cut = None
    if kind == 0:
        expected.failed += 1
        table = rng.choice(
            [pa.table({"n": [1]}), pa.table({"text": [1]}), pa.Table.from_arrays([pa.array(["a"])] * 2, ["text"] * 2)]
        )
    elif kind == 1:
        expected.failed += 1
        cut = rng.randrange(20)
    elif kind == 2 and texts:
        bad = rng.randrange(len(texts))
        values = [(text or "").encode() if number != bad else b"caf\xe9" for number, text in enumerate(texts)]
        binary = pa.array(values, pa.binary())
        table = pa.table({"text": pa.Array.from_buffers(pa.string(), len(values), binary.buffers())})
        for number, text in enumerate(texts):
            expected.row(None if number == bad else text or "")
    else:
        type_ = rng.choice([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
        table = table.set_column(1, "text", pa.array(texts, type_))
        for text in texts:
            expected.row(text or "")
        expected.empty += not texts
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    save(rng, path, rng.choice([".parquet", ".Parquet"]), buffer.getvalue()[:cut])


def other_file(rng: random.Random, path: Path, expected: Expected) -> None:
    suffix = rng.choice([".py", ".html", ".pdf", ".PY", "", ".x y", ".docx.gz"])
    expected.left_out[suffix.removesuffix(".gz").lower() or "without suffix"] += 1
    write(path, suffix, os.urandom(20))


def hidden(rng: random.Random, path: Path, expected: Expected) -> None:
    expected.left_out["hidden"] += 1
    place = path.with_name(f".{path.name}")
    if rng.random() < 0.5:
        place.mkdir()
        place = place / "a.txt"
    write(place, ".txt", b"hidden")


def link(rng: random.Random, path: Path, expected: Expected) -> None:
    kind = rng.randrange(5)
    place = path.with_name(path.name + rng.choice([".txt", ".csv", ".jsonl", ".parquet"]))
    if kind == 0:
        place.symlink_to(rng.choice([place.name, "nowhere.txt", "no/where"]))
        expected.failed += 1
    elif kind == 1:
        path.symlink_to(rng.choice([".", "..", "/"]))
        expected.left_out["links to folders"] += 1
    elif kind == 2:
        write(path, ".txt", b"linked twice")
        place = path.with_name(f"{path.name}-again.md")
        place.symlink_to(f"{path.name}.txt")
        expected.seen += 1
        expected.texts["linked twice"] += 1
        expected.left_out["the same file again"] += 1
    elif kind == 3:
        os.mkfifo(place)
        expected.left_out["pipes, sockets or devices"] += 1
    else:
        place.mkdir()
        expected.seen -= 1


def output_of_ours(rng: random.Random, path: Path, expected: Expected) -> None:
    expected.left_out["outputs of thalweg"] += 1
    kind = rng.randrange(3)
    if kind == 0:
        suffix = rng.choice([".parquet", ".jsonl", ".npy"]) + rng.choice(
            [".failures.jsonl", ".ids.jsonl", ".meta.json"]
        )
        write(path, suffix, b'{"text": "mine"}\n')
    elif kind == 1:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": ["mine"]}).replace_schema_metadata({"thalweg": "{}"}), buffer)
        write(path, ".parquet", buffer.getvalue())
    else:
        folder = path.with_name(f"{path.name}.parts")
        folder.mkdir()
        write(folder / "inputs", ".jsonl", b'{"text": "mine"}\n')
        write(folder / "manifest", ".json", b'[{"text": "mine"}]')


MAKERS: tuple[Callable[[random.Random, Path, Expected], None], ...] = (
    *(text_file, text_file, json_lines, json_lines, json_file, csv_file, csv_file, latin_file, tsv_file, parquet_file),
    *(other_file, hidden, link, output_of_ours),
)

NAMES = (
    "a",
    "[x]",
    "*",
    "caf\udce9",
    "new\nline",
    "\x1b[2J",
    "-o",
    "水",
    "a b",
    "[red]",
    "%s",
    "x" * 150,
    "ä\u0308",
    "#1",
)


def odd_folder(rng: random.Random, root: Path) -> Expected:
    """Fill a folder; there is always something in it that can be embedded."""
    expected = Expected()
    folders = [root]
    for number in range(rng.randint(1, 9)):
        folder = rng.choice(folders)
        name = f"{number}{rng.choice(NAMES)}"
        if rng.random() < 0.15:
            (folder / name).mkdir()
            folders.append(folder / name)
            continue
        expected.seen += 1
        rng.choice(MAKERS)(rng, folder / name, expected)
    write(root / "good", ".txt", b"good")
    expected.seen += 1
    expected.texts["good"] += 1
    return expected


def save(rng: random.Random, path: Path, suffix: str, content: bytes) -> None:
    """A table, packed or not."""
    packed = rng.random() < 0.2
    write(path, suffix + rng.choice([".gz", ".GZ"]) * packed, gzip.compress(content) if packed else content)


def write(path: Path, suffix: str, content: bytes) -> None:
    path.with_name(path.name + suffix).write_bytes(content)
