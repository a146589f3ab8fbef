"""Results as Markdown: tables of every line, the pictures, the machine and the commands. Nothing is written by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from thalweg.bench.plot_series import Line, Over, Row, disturbed, memory, pictures, seconds, single
from thalweg.bench.point import OK, THALWEG, TRANSFORMER, Point
from thalweg.bench.results import read_rows
from thalweg.bench.shapes import SHAPES
from thalweg.bench.studies import LARGE
from thalweg.errors import InvalidInputError
from thalweg.storage.durable import write_durably

COMMANDS = "commands.txt"

HEADINGS: dict[Over, str] = {
    "length": "Time and memory against the length of a text",
    "vertical_chunk_size": "Sweep of the vertical chunk V",
    "inner_chunk": "Sweep of the inner chunk Q",
    "batch": "Batches",
}
SINGLE, DISTURBED = " †", " ‡"
NOTES = {
    SINGLE: "† One timed run, so nothing is known of its spread.",
    DISTURBED: "‡ Other programs used the processor meanwhile: the time is too long.",
}

UNITS: dict[Over, str] = {"length": "", "vertical_chunk_size": "V = ", "inner_chunk": "Q = ", "batch": "batch "}


def write_report(path: Path, folders: Sequence[Path]) -> None:
    """Put the results of some folders into a Markdown file: its section between the marks, or at its end.

    Raises:
        InvalidInputError: a folder without results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    whole = replace_section(before, "thalweg bench", render(folders, path.parent))
    write_durably(path, lambda stream: stream.write(whole.encode()))


def replace_section(text: str, name: str, section: str) -> str:
    """The text with what lies between the marks of `name` replaced, or put at its end."""
    begin, end = f"[//]: # ({name} begins: generated)", f"[//]: # ({name} ends)"
    block = f"{begin}\n\n{section.strip()}\n\n{end}"
    if begin in text and end in text:
        head, rest = text.split(begin, 1)
        return head + block + rest.split(end, 1)[1]
    return f"{text.rstrip()}\n\n{block}\n"


def render(folders: Sequence[Path], base: Path) -> str:
    """The section; pictures are linked from `base`."""
    parts = ["## Efficiency (`thalweg bench`)"]
    every: list[Row] = []
    for folder in folders:
        rows = read_rows(folder)
        if not any(row["status"] == OK for row in rows):
            raise InvalidInputError(f"{folder} holds no results; `thalweg bench --out {folder}` makes them")
        every += rows
        parts += _folder(folder, rows, base)
    return "\n\n".join([*parts, *_gpu(every)])


def _folder(folder: Path, rows: list[Row], base: Path) -> Iterator[str]:
    yield _machine(rows)
    commands = folder / COMMANDS
    if commands.exists():
        yield "```sh\n" + commands.read_text(encoding="utf-8").strip() + "\n```"
    yield (
        "Random weights, random tokens, one process a point. Medians; the least and most of the repetitions are in "
        f"[results.csv]({_link(folder / 'results.csv', base)}), everything is in "
        f"[results.jsonl]({_link(folder / 'results.jsonl', base)})."
    )
    for name, over, drawn in pictures(rows):
        batch = f", batches of {drawn[0].point.batch}" if over != "batch" and drawn[0].point.batch > 1 else ""
        length = "" if over == "length" else f", texts of {drawn[0].point.length:,} tokens"
        yield f"### {HEADINGS[over]}{length}{batch}"
        picture = folder / f"{name}.png"
        if picture.exists():
            yield f"![{HEADINGS[over].lower()}]({_link(picture, base)})"
        yield _table(over, drawn)
        if over == "length":
            yield from _findings(drawn)
    yield from _shares(rows)
    yield from _peers(rows)


def _machine(rows: list[Row]) -> str:
    found: dict[str, Any] = next(row["machine"] for row in rows if row["status"] == OK)
    words = [str(found.get("gpu") or found["cpu"])]
    words += [f"{found['threads']} threads", found["capability"]] if "gpu" not in found else [f"CUDA {found['cuda']}"]
    words += [f"{found['memory'] / 2**30:.0f} GiB"] if found.get("memory") else []
    words += [f"{name} {found[name]}" for name in ("torch", "transformers", "thalweg") if name in found]
    return " · ".join(map(str, words)) + "."


def _table(over: Over, drawn: list[Line]) -> str:
    """A row for every line: time per text and peak memory at each x."""
    xs = sorted({x for line in drawn for x, _ in line.rows})
    horizontal = over == "vertical_chunk_size"
    xs = [x for x in xs if not (horizontal and all(_is_horizontal(line.by_x.get(x)) for line in drawn))]
    head = ["model", "setting", *(f"{UNITS[over]}{x:,}" for x in xs), *(["horizontal"] if horizontal else [])]
    table = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for line in drawn:
        cells = [_cell(line.by_x.get(x)) for x in xs]
        cells += [_cell(line.whole)] if horizontal else []
        setting = {"vertical_chunk_size": "vertical", "inner_chunk": line.point.setting.split(", Q")[0]}
        table.append([line.point.name, setting.get(over, line.point.setting), *cells])
    notes = [note for mark, note in NOTES.items() if any(mark in cell for row in table for cell in row)]
    return "\n\n".join([_markdown(table), *notes])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != OK:
        return str(row["status"])
    marks = SINGLE * single(row) + DISTURBED * disturbed(row)
    return f"{_time(seconds(row))}{marks} · {_size(memory(row))}"


def _findings(drawn: list[Line]) -> Iterator[str]:
    """What the paper claims, as these rows have it: growth of memory, vertical against horizontal."""
    table = [["", "from … to … tokens", "memory grows", "vertical time / horizontal time"], ["---"] * 4]
    for line in drawn:
        v = line.point.vertical_chunk_size or 0
        beyond = [(x, row) for x, row in line.done if x > v]
        if len(beyond) < 2:
            continue
        (first, low), (last, high) = beyond[0], beyond[-1]
        cells = [f"{first:,} to {last:,}", f"× {memory(high) / memory(low):.2f}"]
        table.append([f"{line.point.name}, {line.point.setting}", *cells, _against(line, drawn)])
    if len(table) > 2:
        yield _markdown(table)


def _against(line: Line, drawn: list[Line]) -> str:
    """A vertical line's time over its horizontal twin's, at the longest text that both have."""
    if line.point.runner != THALWEG or line.point.horizontal:
        return ""
    twin = next((other for other in drawn if other.point.horizontal and other.point.name == line.point.name), None)
    both = [x for x, _ in line.done if twin is not None and x in dict(twin.done)]
    if twin is None or not both:
        return ""
    x = both[-1]
    return f"{seconds(line.by_x[x]) / seconds(twin.by_x[x]):.2f} at {x:,} tokens"


def _shares(rows: list[Row]) -> Iterator[str]:
    shared = [row for row in rows if "share_of_limit" in row]
    if not shared:
        return
    longest = {row["point"].get("shape", row["point"].get("model")): row for row in _ascending(shared)}
    yield "### Share of the machine's limit"
    yield "A step of V tokens against its matrix products alone, timed in turn."
    table = [["model", "dtype", "V", "limit, tokens/s", "share"], ["---", "---", "--:", "--:", "--:"]]
    for row in longest.values():
        point, share = Point.from_json(row["point"]), row["share_of_limit"]
        limit = f"{row['limit_tokens_per_s']['median']:,.0f}"
        spread = f"{share['median']:.0%} ({share['min']:.0%}–{share['max']:.0%})"
        table.append([point.name, point.dtype, f"{point.vertical_chunk_size:,}", limit, spread])
    yield _markdown(table)


def _peers(rows: list[Row]) -> Iterator[str]:
    peers = [row for row in rows if row["point"]["runner"] not in (THALWEG, TRANSFORMER)]
    if not peers:
        return
    yield "### Peers, the same weights"
    table = [["model", "tokens", "runner", "time per text", "peak memory", "thalweg is"], ["---"] * 6]
    for row in peers:
        point = Point.from_json(row["point"])
        ours = next(
            (each for each in rows if _ours(Point.from_json(each["point"]), point) and each["status"] == OK), None
        )
        cells = [point.name, f"{point.length:,}", point.runner]
        if row["status"] != OK:
            table.append([*cells, row["status"], "", ""])
            continue
        faster = f"{seconds(row) / seconds(ours):.1f} × as fast" if ours else ""
        table.append([*cells, _time(seconds(row)), _size(memory(row)), faster])
    yield _markdown(table)


def _ours(a: Point, b: Point) -> bool:
    same = ("shape", "model", "length", "batch", "dtype", "device", "layers", "vocabulary", "threads")
    wanted = a.runner == THALWEG and a.vertical_chunk_size is not None and a.inner_chunk is None
    return wanted and all(getattr(a, name) == getattr(b, name) for name in same)


def _gpu(rows: list[Row]) -> Iterator[str]:
    """The shapes that need a GPU, until they have been measured on one."""
    measured = {row["point"].get("shape") for row in rows if row["point"].get("device", "").startswith("cuda")}
    missing = [name for name in LARGE if name not in measured]
    if not missing:
        return
    yield "### On a GPU"
    table = [["model", "as", "length, V, Q and batch studies in bfloat16"], ["---"] * 3]
    yield _markdown([*table, *([name, SHAPES[name].like, "not measured"] for name in missing)])
    shapes = " ".join(f"--shape {name}" for name in missing)
    studies = "--study length --study chunk --study batch"
    yield f"```sh\nthalweg bench {studies} --device cuda --dtype bfloat16 {shapes} --out gpu\n```"


def note_command(folder: Path, command: str) -> None:
    """Keep the command that filled a folder, once."""
    path = folder / COMMANDS
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if command not in known:
        write_durably(path, lambda stream: stream.write("\n".join([*known, command, ""]).encode()))


def _ascending(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["point"]["length"])


def _is_horizontal(row: Row | None) -> bool:
    return row is None or Point.from_json(row["point"]).horizontal


def _markdown(table: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _time(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"


def _link(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
