"""Rows to lines, pictures and Markdown."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from thalweg.bench.figures import draw
from thalweg.bench.plot_series import lines, pictures
from thalweg.bench.report import note_command, replace_section, write_report
from thalweg.bench.results import Results
from thalweg.errors import InvalidInputError

from .points import row, tiny


def study() -> list[dict[str, Any]]:
    """Memory flat in vertical rows, growing in horizontal ones and in a transformer's, which fails at last."""
    rows = []
    for length in (2048, 4096, 8192):
        rows.append(row(tiny(length, vertical_chunk_size=1024), length / 1000, 0.5, share_of_limit=share(0.7)))
        rows[-1]["limit_tokens_per_s"] = share(1234.0)
        rows.append(row(tiny(length), length / 990, length / 4096))
        transformer = tiny(length, runner="transformer", shape="mistral-130m")
        failed = {"point": transformer.to_json(), "status": "out of memory", "message": "gone"}
        rows.append(failed if length == 8192 else row(transformer, length / 500, length / 1000))
    rows += [row(tiny(8192, vertical_chunk_size=v), 8 + 100 / v, 0.4) for v in (64, 128, 256)]
    rows += [row(tiny(8192, vertical_chunk_size=1024, inner_chunk=q), 8.0, 0.4) for q in (16, 32, 64, 128)]
    rows += [row(tiny(2048, vertical_chunk_size=1024, batch=b), 2.0 * b, 0.1 * b + 0.4) for b in (4, 8)]
    rows.append(row(tiny(2048, runner="transformers, one pass"), 20.48, 1.0))
    return rows


def share(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def fill(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from thalweg.bench.point import Point

    with Results(folder) as results:
        for each in rows:
            results.add(Point.from_json(each["point"]), each)
    return folder


def test_lines() -> None:
    found = lines(
        [each for each in study() if each["point"]["batch"] == 1 and "inner_chunk" not in each["point"]], "length"
    )
    assert {line.point.setting: [x for x, _ in line.done] for line in found} == {
        "V = 1,024": [2048, 4096, 8192],
        "horizontal": [2048, 4096, 8192],
        "full attention": [2048, 4096],
    }
    (failed,) = [line for line in found if line.failed]
    assert failed.failed is not None
    assert failed.failed[0] == 8192


def test_the_latest_row_counts() -> None:
    old, new = row(tiny(10), 5.0), row(tiny(10, repeat=9), 2.0)
    (line,) = lines([old, new, row(tiny(20))], "length")
    assert line.by_x[10] is new


@pytest.mark.slow
def test_pictures_follow_from_the_rows(tmp_path: Path) -> None:
    names = [name for name, _, _ in pictures(study())]
    assert names == ["length", "chunk-v-8192", "chunk-q-8192", "batch-2048"]
    paths = draw(study(), tmp_path)
    assert [path.stem for path in paths] == names
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
        assert "</svg>" in path.with_suffix(".svg").read_text()


def test_axes_have_names_units_and_numbers(figures: list[Any], tmp_path: Path) -> None:
    draw(study(), tmp_path)
    assert len(figures) == 4
    for figure in figures:
        left, right = figure.axes
        assert left.get_ylabel() == "time per text (s)"
        assert right.get_ylabel() == "peak memory of the process (GiB)"
        for axis in (left, right):
            assert axis.get_xlabel().endswith((" (tokens)", " (texts)"))
            figure.canvas.draw()
            low, high = axis.get_ylim()
            numbers = [tick for tick in axis.get_yticks() if low <= tick <= high]
            shown = [text.get_text() for text in axis.get_yticklabels() if low <= text.get_position()[1] <= high]
            assert len(numbers) >= 3, "a scale that can be read"
            assert all(shown), "with no tick without its number"
            if axis.get_yscale() == "linear":
                assert low == 0


def test_lines_that_lie_on_each_other_are_told_apart(figures: list[Any], tmp_path: Path) -> None:
    shapes = ("mamba2-130m", "mamba-130m", "xlstm-0.1b")
    draw([row(tiny(n, shape=shape, vertical_chunk_size=16), 1.0) for n in (32, 64) for shape in shapes], tmp_path)
    lines = [line for line in figures[0].axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert len(lines) == len(shapes)
    for below, above in pairwise(lines):
        assert below.get_linewidth() > above.get_linewidth()
        assert below.get_markersize() > above.get_markersize()
        assert below.get_color() != above.get_color()


def test_single_and_disturbed_runs_are_marked(figures: list[Any], tmp_path: Path) -> None:
    busy = {"machine": {**row(tiny())["machine"], "cores": 2}, "other_cores": 1.4}
    once = {"median": 1.0, "min": 1.0, "max": 1.0, "all": [1.0]}
    rows = [row(tiny(32)), row(tiny(64)), row(tiny(128), **busy), row(tiny(256), **busy)]
    for each in rows[1::2]:
        each["seconds"] = once
    draw(rows, tmp_path)
    (figure,) = figures
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "one timed run" in legend
    assert "shortest to longest run" in legend
    assert "other programs used up to 1.4 of 2 cores" in figure.get_suptitle()
    marked = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_color() == "white"]
    assert [list(xs) for xs in marked] == [[64, 256]]
    write_report(tmp_path / "r.md", [fill(tmp_path / "results", rows)])
    text = (tmp_path / "r.md").read_text()
    assert "1 s · 1.00 GiB | 1 s † · 1.00 GiB | 1 s ‡ · 1.00 GiB | 1 s † ‡ · 1.00 GiB |" in text
    assert "† One timed run" in text
    assert "‡ Other programs used the processor" in text
    csv = (tmp_path / "results" / "results.csv").read_text().splitlines()
    assert {"other_cores"} <= set(csv[0].split(","))


def test_any_model_is_named_in_the_legend(figures: list[Any], tmp_path: Path) -> None:
    rows = [
        row(tiny(n, shape=None, model=f"folder/{name}"), 1.0)
        for n in (32, 64)
        for name in ("_private", "$x$ {", "\x1b[2J")
    ]
    draw(rows, tmp_path)
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert len([text for text in texts if "private" in text or r"\$x\$" in text or "␛[2J" in text]) == 3
    assert "\x1b" not in (tmp_path / "length.svg").read_text()


def test_drawing_twice_gives_the_same_file(tmp_path: Path) -> None:
    content = []
    for _ in range(2):
        (path,) = draw([row(tiny(n), n) for n in (10, 20)], tmp_path)
        content.append(path.with_suffix(".svg").read_bytes())
    assert content[0] == content[1]


@pytest.mark.slow
def test_report(tmp_path: Path) -> None:
    folder = fill(tmp_path / "results", study())
    note_command(folder, "thalweg bench --study length")
    note_command(folder, "thalweg bench --study length")
    draw(study(), folder)
    path = tmp_path / "docs" / "results.md"
    write_report(path, [folder])
    text = path.read_text()
    assert text.startswith("# Results\n")
    assert text.count("thalweg bench --study length\n") == 1
    assert "![time and memory against the length of a text](../results/length.png)" in text
    assert "| Mamba2, 1 × 768, V = 1,024 | 2,048 to 8,192 | × 1.00 | 0.99 at 8,192 tokens |" in text
    assert "| Mamba2, 1 × 768, horizontal | 2,048 to 8,192 | × 4.00 |  |" in text
    assert "out of memory |" in text
    assert "| Mamba2, 1 × 768 | 2,048 | transformers, one pass | 20.5 s | 1.00 GiB | 10.0 × as fast |" in text
    assert "70% (70%–70%)" in text
    assert "| codestral-7b | mistralai/Mamba-Codestral-7B-v0.1 | not measured |" in text
    write_report(path, [folder])
    assert path.read_text() == text


def test_what_a_gpu_has_measured_is_not_missing(tmp_path: Path) -> None:
    rows = [row(tiny(n, shape="codestral-7b", device="cuda", dtype="bfloat16"), n) for n in (1024, 2048)]
    machine = {"gpu": "H", "cuda": "13", "cpu": "x", "torch": "2"}
    for each in rows:
        each["machine"] = machine
        each["memory"] |= {"cuda_allocated": 7 << 30, "cuda_reserved": 8 << 30}
    write_report(tmp_path / "r.md", [fill(tmp_path / "gpu", rows)])
    text = (tmp_path / "r.md").read_text()
    assert "7.00 GiB" in text
    assert "codestral-7b | mistralai" not in text
    assert "| rwkv7-7.2b |" in text


def test_other_sections_stay() -> None:
    text = replace_section("# Results\n\nby hand\n", "thalweg bench", "one")
    text = replace_section(text, "thalweg eval", "two")
    text = replace_section(text, "thalweg bench", "three")
    assert "by hand" in text
    assert "one" not in text
    assert text.index("three") < text.index("two")


def test_no_results(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="holds no results; `thalweg bench --out"):
        write_report(tmp_path / "r.md", [tmp_path / "empty"])
