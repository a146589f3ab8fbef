"""`thalweg embed`: sections of any kind, and a text that is followed while it grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg
from tests.embedder.test_sections import prose
from thalweg import Sections

from ..corpus.corpora import rows_of
from ..corpus.tiny import make_text, write_model
from .conftest import Command


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        (["--sections", "40"], Sections(every=40)),
        (["--sections", "40:tokens", "--section-mode", "isolated"], Sections(every=40, mode="isolated")),
        (["--sections", "paragraph"], Sections("paragraph")),
        (["--sections", "5:sentence", "--section-mode", "prefix"], Sections("sentence", 5, "prefix")),
        (["--sections", "heading", "--section-mode", "isolated"], Sections("heading", mode="isolated")),
        (["--sections", "sentence", "--section-mode", "mean", "--look-ahead", "7"], Sections("sentence", look_ahead=7)),
    ],
)
def test_what_a_section_is(
    thalweg_command: Command, model_folder: Path, tmp_path: Path, options: list[str], sections: Sections
) -> None:
    texts = {"a.txt": prose(300), "b.txt": "short", "c.txt": make_text(200)}
    for name, content in texts.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    out = tmp_path / "out.parquet"
    result = thalweg_command(
        "embed", *(tmp_path / name for name in texts), "-o", out, "--model", model_folder, *options
    )
    assert result.exit_code == 0, result.stderr
    rows, vectors = rows_of(out)
    embedder = thalweg.load(model_folder)
    want = list(embedder.encode_stream(list(texts.values()), sections=sections))
    contents = list(texts.values())
    assert [row["text"] for row in rows] == [contents[r.index][r.char_start : r.char_end] for r in want]
    assert [(row["section"], row["n_tokens"]) for row in rows] == [(r.section, r.n_tokens) for r in want]
    np.testing.assert_allclose(vectors, [r.vector for r in want], rtol=0, atol=1e-5)
    assert len({row["key"] for row in rows}) == len(rows)
    assert thalweg.corpus.read_metadata(out).section_size == (40 if sections.by == "tokens" else None)


def test_a_resumed_run_must_agree_in_what_a_section_is(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": prose(60)}) + "\n" + '{"text": "words"}\n' * 100 + "bad\n")
    arguments = ["embed", tmp_path / "t.jsonl", "-o", tmp_path / "out.parquet", "--model", model_folder]
    arguments += ["--save-every", 0, "--max-tokens-per-step", 64]
    cut = ["--sections", "sentence", "--section-mode", "prefix"]
    assert thalweg_command(*arguments, *cut, "--strict").exit_code == 1
    assert (tmp_path / "out.parquet.parts").is_dir()
    for others, told in (
        (["--sections", "2:sentence", "--section-mode", "prefix"], "sections was '1:sentence', is '2:sentence'"),
        (["--sections", "sentence"], "section-mode was 'prefix', is None"),
        ([*cut, "--look-ahead", "3"], "look-ahead was None, is 3"),
    ):
        result = thalweg_command(*arguments, *others, "--resume")
        assert result.exit_code == 1
        assert told in result.stderr
    assert thalweg_command(*arguments, *cut, "--resume").exit_code == 3


def test_the_mode_that_goes_with_the_model_may_be_named(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(make_text(100))
    arguments = ["embed", tmp_path / "a.txt", "-o", tmp_path / "out.npy", "--model", model_folder, "--sections", 20]
    assert thalweg_command(*arguments).exit_code == 0
    again = thalweg_command(*arguments, "--section-mode", "mean", "--resume")
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sections", "0"], "neither a number of tokens"),
        (["--sections", "page"], "neither a number of tokens"),
        (["--sections", "0:sentence"], "neither a number of tokens"),
        (["--sections", "sentence:5"], "neither a number of tokens"),
        (["--sections", "5", "--section-mode", "other"], "--section-mode"),
        (["--section-mode", "mean"], "--section-mode needs --sections"),
        (["--look-ahead", "3"], "--look-ahead needs --sections"),
        (["--sections", "5", "--section-mode", "isolated", "--look-ahead", "3"], "exclude each other"),
        (["--every", "0"], "--every"),
        (["--every", "5"], "INPUT must be - alone"),
    ],
)
def test_wrong_usage(thalweg_command: Command, tmp_path: Path, options: list[str], told: str) -> None:
    (tmp_path / "a.txt").write_text("words")
    result = thalweg_command("embed", tmp_path / "a.txt", "-o", tmp_path / "out.npy", *options)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("option", [["--sections", "5"], ["--resume"], ["--lines"], ["--format", "csv"]])
def test_what_does_not_go_with_following(thalweg_command: Command, tmp_path: Path, option: list[str]) -> None:
    result = thalweg_command("embed", "-", "-o", tmp_path / "out.jsonl", "--every", "5", *option, input="words")
    assert result.exit_code == 2
    assert "exclude each other" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_text_that_is_followed(thalweg_command: Command, tmp_path: Path, pooling: Any) -> None:
    folder = write_model(tmp_path / "model", pooling=pooling, prompts={"document": "note: "})
    text = "\ufeff" + make_text(900)
    out = tmp_path / "out.jsonl"
    arguments = ["embed", "-", "--every", 100, "-o", out, "--model", folder]
    result = thalweg_command(*arguments, "--truncate-dim", 8, input=text.encode())
    assert result.exit_code == 0, result.stderr
    assert f"tokens → {out}" in result.stderr
    rows, vectors = rows_of(out)
    assert "".join(row["text"] for row in rows) == text[1:]
    want = list(thalweg.load(folder).stream(text[1:], 100, prompt="note: ", truncate_dim=8))
    assert np.cumsum([row["n_tokens"] for row in rows]).tolist() == [n for n, _ in want]
    np.testing.assert_allclose(vectors, [vector for _, vector in want], rtol=0, atol=1e-5)
    assert [(row["key"], row["section"]) for row in rows] == [(f"-#{i}", i) for i in range(len(rows))]
    metadata = thalweg.corpus.read_metadata(out)
    assert (metadata.rows, metadata.documents, metadata.failed, metadata.dimension) == (len(rows), 1, 0, 8)
    assert metadata.run["settings"]["sections"] == 100
    hits = thalweg_command("search", out, "the river", "--json", "-k", 1, "--model", folder)
    assert hits.exit_code == 0, hits.stderr
    assert thalweg_command(*arguments, input="again").exit_code == 1, "an output that is there is not replaced"
    (tmp_path / "out.jsonl.failures.jsonl").write_text("of an earlier run")
    options = ["--overwrite", "--no-text", "--precision", "binary", "--encoding", "utf-16"]
    result = thalweg_command(*arguments, *options, input="again".encode("utf-16"))
    assert result.exit_code == 0, result.stderr
    (row,), _ = rows_of(out)
    assert row["char_end"] == 5
    assert "text" not in row
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()


@pytest.mark.slow
def test_a_followed_text_that_cannot_be_read_on_keeps_its_rows(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["embed", "-", "--every", 50, "-o", out, "--model", model_folder]
    text = make_text(60_000).encode()
    result = thalweg_command(*arguments, input=text + b"\xff" + text)
    assert result.exit_code == 1
    assert "stdin is not UTF-8" in result.stderr
    assert "--encoding says otherwise" in result.stderr
    metadata = thalweg.corpus.read_metadata(out)
    assert (metadata.documents, metadata.failed) == (0, 1)
    assert metadata.rows == len(rows_of(out)[0]) > 10
    result = thalweg_command(*arguments, "--overwrite", input=b"\xff")
    assert result.exit_code == 1
    assert not out.exists(), "a text without a row leaves no file"


def test_what_cannot_be_written_while_a_text_is_followed(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    for name, options, told in (
        ("out.parquet", [], "in .jsonl only, not in 'out.parquet'"),
        ("out.jsonl", ["--precision", "int8"], "int8 needs the ranges of all vectors"),
    ):
        arguments = ["embed", "-", "--every", 50, "-o", tmp_path / name, "--model", model_folder]
        result = thalweg_command(*arguments, *options, input="text")
        assert result.exit_code == 1
        assert told in result.stderr


@pytest.mark.subprocess
@pytest.mark.kill
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_rows_are_there_while_the_text_is_still_coming(model_folder: Path, tmp_path: Path) -> None:
    """And what was written when it is interrupted can be searched."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "thalweg.cli", "embed", "-", "--every", "50", "-o", str(out)]
    command += ["--model", str(model_folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        process.stdin.write(make_text(3000).encode())
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_bytes().count(b"\n") > 5):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen = [json.loads(line) for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        assert [row["section"] for row in seen] == list(range(len(seen)))
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert b"interrupted: " in errors
    rows, _ = rows_of(out)
    assert rows[: len(seen)] == [{key: row[key] for key in rows[0]} for row in seen]
    assert thalweg.corpus.read_metadata(out).rows == len(rows)
