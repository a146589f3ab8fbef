"""`thalweg embed`: what it prints and how it exits."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import thalweg

from ..corpus.corpora import rows_of
from ..corpus.tiny import make_text
from .conftest import Command


def test_some_failures_exit_with_3_and_are_listed(
    thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    result = thalweg_command("embed", docs, "-o", out, "--model", model_folder)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "g-binary.txt  looks binary" in " ".join(result.stderr.split()).replace("g-binary.txt ", "g-binary.txt  ")
    assert "3 failed, 1 skipped; all are listed in" in result.stderr
    assert "what is in another encoding than UTF-8 can be read with --encoding NAME" in result.stderr
    assert "41 documents, 41 vectors" in result.stderr
    assert len(rows_of(out)[0]) == 41


def test_all_well_exits_with_0(thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = thalweg_command(
        "embed", docs / "d.csv", tmp_path / "empty.txt", "-o", tmp_path / "out.npy", "--model", model_folder
    )
    assert result.exit_code == 0, "an empty file is skipped, which is no failure"
    assert "0 failed, 1 skipped" in result.stderr
    assert np.load(tmp_path / "out.npy").shape == (3, 32)


def test_shared_beginnings_change_nothing(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    """Rows of tables and files alike."""
    head = make_text(300)
    texts = [head + make_text(20, seed) for seed in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "files").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "files" / f"{number:02}.txt").write_text(text * 3)
    for options in ([], ["--share-prefixes"]):
        out = tmp_path / f"{len(options)}.npy"
        inputs = [tmp_path / "rows.jsonl", tmp_path / "files"]
        result = thalweg_command("embed", *inputs, "-o", out, "--model", model_folder, *options)
        assert result.exit_code == 0
    plain, shared = (np.load(tmp_path / f"{n}.npy") for n in (0, 1))
    assert plain.shape == (24, 32)
    np.testing.assert_allclose(shared, plain, rtol=0, atol=2e-6)


def test_more_than_ten_troubles_are_counted(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 15)
    result = thalweg_command("embed", tmp_path / "t.jsonl", "-o", tmp_path / "out.jsonl", "--model", model_folder)
    assert result.exit_code == 3
    assert "15 failed, 0 skipped, 5 of them not shown" in result.stderr
    assert len((tmp_path / "out.jsonl.failures.jsonl").read_text().splitlines()) == 15


def test_quiet_says_nothing(thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path) -> None:
    result = thalweg_command("embed", docs, "-o", tmp_path / "out.npy", "--model", model_folder, "--quiet")
    assert (result.exit_code, result.output) == (3, "")


def test_errors_are_one_line_without_traceback(
    thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path
) -> None:
    cases = {
        ("embed", tmp_path / "nothing.txt", "-o", tmp_path / "o.npy"): "does not exist",
        ("embed", docs, "-o", tmp_path / "o.pkl"): "must end in .parquet, .jsonl, .npy",
        ("embed", docs, "-o", tmp_path / "no" / "o.npy"): "does not exist; create it first",
        ("embed", docs, "-o", tmp_path / "o.npy", "--model", docs): "config.json",
        ("embed", docs, "-o", tmp_path / "o.npy", "--model", model_folder, "--truncate-dim", 99): "truncate_dim",
        ("embed", docs / "g-binary.txt", "-o", tmp_path / "o.npy", "--model", model_folder): "no document could be",
        ("embed", docs, "-o", tmp_path / "o.npy", "--model", model_folder, "--strict"): "--strict stops here",
        ("search", tmp_path / "missing.npy", "words"): "there is no file",
        ("info", tmp_path / "missing"): "no folder",
        ("info", model_folder, "--device", "nonsense"): "device 'nonsense' cannot be used",
        ("info", model_folder, "--device", "cuda:99"): "device 'cuda:99' cannot be used",
    }
    for arguments, message in cases.items():
        result = thalweg_command(*arguments)
        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert isinstance(result.exception, SystemExit)


def test_debug_raises(thalweg_command: Command, docs: Path, tmp_path: Path) -> None:
    result = thalweg_command("embed", docs, "-o", tmp_path / "o.pkl", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, thalweg.CorpusError)


def test_an_output_that_exists_is_kept(
    thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    arguments = ("embed", docs / "d.csv", "-o", out, "--model", model_folder)
    assert thalweg_command(*arguments).exit_code == 0
    refused = thalweg_command(*arguments)
    assert refused.exit_code == 1
    assert "replace it with --overwrite" in refused.stderr
    resumed = thalweg_command(*arguments, "--resume")
    assert resumed.exit_code == 0
    assert "nothing to do" in resumed.stderr
    assert thalweg_command(*arguments, "--overwrite").exit_code == 0


def test_an_output_inside_its_input_is_not_read(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    for name in ("out.parquet", "out.npy", "out.jsonl"):
        for _ in range(2):
            arguments = ("embed", tmp_path, "-o", tmp_path / name, "--model", model_folder, "--overwrite")
            assert thalweg_command(*arguments).exit_code == 0
            assert [row["id"] for row in rows_of(tmp_path / name)[0]] == ["a.txt"]
        for path in tmp_path.glob("out*"):
            path.unlink()


def test_a_run_can_be_resumed_whose_work_folder_lies_in_its_input(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "words"}\n' * 300 + "bad\n")
    arguments = ("embed", tmp_path, "-o", tmp_path / "out.parquet", "--model", model_folder)
    arguments += ("--save-every", 0, "--max-tokens-per-step", 64)
    assert thalweg_command(*arguments, "--strict").exit_code == 1
    assert (tmp_path / "out.parquet.parts").is_dir()
    assert thalweg_command(*arguments, "--resume").exit_code == 3


def test_stdin_whole_and_by_lines(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    text = "first line\n\nthird line\n"
    arguments = ("embed", "-", "-o", out, "--model", model_folder, "--overwrite")
    assert thalweg_command(*arguments, input=text).exit_code == 0
    assert [(row["id"], row["text"]) for row in rows_of(out)[0]] == [("-", text)]
    assert thalweg_command(*arguments, "--lines", input=text).exit_code == 0
    assert [(row["id"], row["text"]) for row in rows_of(out)[0]] == [
        ("-:0", "first line"),
        ("-:1", ""),
        ("-:2", "third line"),
    ]
    empty = thalweg_command(*arguments, input="")
    assert empty.exit_code == 1
    assert "an empty file" in empty.stderr


def test_options_reach_the_run(thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    (tmp_path / "x.py").write_text(make_text(100))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"key,words\nk,one two three\n"))
    options = ["--sections", 20, "--precision", "uint8", "--truncate-dim", 8, "--no-normalize", "--no-text"]
    options += ["--vertical-chunk-size", 16, "--max-tokens-per-step", 64, "--max-in-flight", 2, "--max-length", 50]
    options += [
        "--prompt",
        "p: ",
        "--text-column",
        "words",
        "--id-column",
        "key",
        "--save-every",
        0,
        "--dtype",
        "float32",
    ]
    options += ["--device", "cpu", "--glob", "*.py", "--glob", "*.csv.gz"]
    result = thalweg_command("embed", tmp_path, "-o", out, "--model", model_folder, *options)
    assert result.exit_code == 0, result.stderr
    assert "--max-length 50 cut 1 of 2 documents" in result.stderr
    rows, vectors = rows_of(out)
    assert [(row["id"], row["section"]) for row in rows] == [("k", 0), ("x.py", 0), ("x.py", 1), ("x.py", 2)]
    assert vectors.shape == (4, 8)
    assert "text" not in rows[0]
    metadata = thalweg.corpus.read_metadata(out)
    assert (metadata.prompt, metadata.normalized, metadata.precision) == ("p: ", False, "uint8")
    assert metadata.model == str(model_folder)


@pytest.mark.slow
def test_how_texts_are_read_is_an_option(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the river " + " " * 40_000 + "a")
    (tmp_path / "b.txt").write_text("the river </s> and on")
    common = ["embed", tmp_path / "a.txt", tmp_path / "b.txt", "--model", model_folder, "-o"]
    result = thalweg_command(*common, tmp_path / "one.parquet", "--max-uncut-chars", 20_000)
    assert result.exit_code == 3
    assert "max_uncut_chars=20000" in (tmp_path / "one.parquet.failures.jsonl").read_text()
    options = ["--max-uncut-chars", 50_000, "--special-tokens"]
    found = []
    for special_tokens in ("token", "text"):
        out = tmp_path / f"{special_tokens}.parquet"
        assert thalweg_command(*common, out, *options, special_tokens).exit_code == 0
        found.append(thalweg.corpus.read_metadata(out).fingerprint)
        query = thalweg_command("search", out, "the", "--model", model_folder, "--special-tokens", special_tokens)
        assert query.exit_code == 0, query.stderr
    assert found[0] != found[1]


def test_a_relative_model_is_found_from_elsewhere(
    thalweg_command: Command, docs: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    out = tmp_path / "out.npy"
    assert thalweg_command("embed", docs / "d.csv", "-o", out, "--model", model_folder.name).exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert thalweg_command("search", "out.npy", "words").exit_code == 0


@pytest.mark.kill
@pytest.mark.subprocess
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_points_to_resume(
    model_folder: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """Ctrl-C, and what a supervisor sends. While it writes, no other run may have its output."""
    (tmp_path / "docs").mkdir()
    for i in range(3):
        (tmp_path / "docs" / f"{i}.txt").write_text(make_text(100_000, i))
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "thalweg.cli", "embed", str(tmp_path / "docs"), "-o", str(out)]
    command += ["--model", str(model_folder), "--sections", "100", "--save-every", "0.1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.parquet.parts/part-*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for mode in ("new", "resume", "overwrite"):
        with pytest.raises(thalweg.CorpusError, match=rf"another run is writing to .* now \(process {run.pid}\)"):
            thalweg.corpus.check_free(out, mode)  # type: ignore[arg-type]
    run.send_signal(sent)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors.startswith("interrupted; what is done is saved in")
    assert "--resume" in errors
    manifest = json.loads((tmp_path / "out.parquet.parts" / "manifest.json").read_text())
    assert manifest["settings"]["sections"] == 100


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_awkward_file_names_are_stored_and_shown(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[red]docs"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("words")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9mpty.txt")).write_text("")
    out = tmp_path / "out:smile:[bold].jsonl"
    result = thalweg_command("embed", folder, "-o", out, "--model", model_folder)
    assert result.exit_code == 0, result.stderr
    assert r"\xe9mpty.txt" in result.stderr
    assert str(out) in result.stderr
    (row,) = rows_of(out)[0]
    assert row["id"] == r"caf\xe9.txt"
    assert thalweg_command("search", out, "words").exit_code == 0


def test_formats_are_said_for_stdin_and_for_files(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("embed", "-", "-o", out, "--model", model_folder, "--overwrite")
    inputs: dict[str, str | bytes] = {
        "jsonl": '{"text": "one"}\n\n{"text": "two"}\n',
        "json": '[{"text": "one"}, {"text": "two"}]',
        "csv": "text\none\ntwo\n",
        "tsv": "id\ttext\n1\tone\n2\ttwo\n",
        "lines": "one\ntwo\n",
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), buffer)
    inputs["parquet"] = buffer.getvalue()
    for name, content in inputs.items():
        result = thalweg_command(*arguments, "--format", name, input=content)
        assert result.exit_code == 0, result.stderr
        assert [row["text"] for row in rows_of(out)[0]] == ["one", "two"], name
        assert "1 file: 1 read\n2 rows of tables\n" in result.stderr
    result = thalweg_command(*arguments, input=inputs["jsonl"])
    assert "-: read as one text, but it looks like JSON lines (--format jsonl)" in result.stderr
    (tmp_path / "odd.txt").write_bytes("nr#wörter\n1#déjà vu\n".encode("latin-1"))
    arguments = ("embed", tmp_path / "odd.txt", *arguments[2:], "--format", "csv", "--encoding", "latin-1")
    result = thalweg_command(*arguments, "--delimiter", "#", "--text-column", "wörter", "--id-column", "nr")
    assert result.exit_code == 0, result.stderr
    assert [(row["id"], row["text"]) for row in rows_of(out)[0]] == [("1", "déjà vu")]


def test_formats_that_are_none(thalweg_command: Command, docs: Path, tmp_path: Path) -> None:
    arguments = ("embed", docs, "-o", tmp_path / "out.npy")
    for options, code, told in (
        (("--format", "xml"), 2, "--format xml is none of text, lines, jsonl, json, csv, tsv, parquet"),
        (("--format", "csv", "--lines"), 2, "--lines and --format exclude each other"),
        (("--encoding", "utf-9"), 1, "there is no encoding 'utf-9'"),
        (("--delimiter", "ab"), 1, "a delimiter is one character"),
    ):
        result = thalweg_command(*arguments, *options)
        assert result.exit_code == code
        assert told in " ".join(result.stderr.replace("│", " ").split())


def test_the_summary_says_what_became_of_the_input(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.py", "b.py", "c.pdf", ".hidden", "Makefile", "empty.txt"):
        (docs / name).write_text("")
    (docs / "a.txt").write_text("words")
    (docs / "t.csv").write_bytes("id;text\n1;Größe\n1;x;y\n1;z\n".encode("latin-1"))
    out = tmp_path / "out.parquet"
    arguments = ("embed", docs, "-o", out, "--model", model_folder, "--id-column", "id")
    result = thalweg_command(*arguments)
    assert result.exit_code == 3
    for line in (
        "8 files: 2 read, 1 empty, 5 left out (2 .py, 1 .pdf, 1 hidden, 1 without suffix); take others with --glob",
        "3 rows of tables, 1 of them failed",
        "t.csv: columns are separated by ';' (--delimiter says otherwise)",
        "t.csv: read as windows-1252 (--encoding says otherwise)",
        "1 document with the id of an earlier one ('1'): the column key tells them apart",
    ):
        assert line in result.stderr.splitlines()
    strict = thalweg_command(*arguments, "--overwrite", "--strict")
    assert (strict.exit_code, "--strict stops here" in strict.stderr) == (1, True)


def test_debug_shows_where_a_reader_failed(
    thalweg_command: Command, model_folder: Path, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError("no idea")

    monkeypatch.setattr("thalweg.corpus.documents.read_records", failing)
    arguments = ("embed", docs, "-o", tmp_path / "out.npy", "--model", model_folder, "--overwrite")
    result = thalweg_command(*arguments)
    assert result.exit_code == 3
    assert "ZeroDivisionError: no idea; this is a bug of thalweg" in result.stderr
    assert "Traceback" not in result.stderr
    result = thalweg_command(*arguments, "--debug")
    assert result.exit_code == 3
    assert "in failing" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="shells")
def test_a_closed_stdin_is_told(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thalweg.cli", "embed", "-", "-o", str(tmp_path / "o.npy"), "--model"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command, str(model_folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "stdin is closed; pipe something into it, or name a file" in done.stderr
    assert "Traceback" not in done.stderr
