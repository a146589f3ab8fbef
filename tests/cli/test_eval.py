"""`thalweg eval` from end to end, offline: results, reports, interruption and resumption."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..evaluation.tiny import TASK_FILE, write_data
from .conftest import Command

pytest.importorskip("mteb")
pytest.importorskip("rank_bm25")
pytest.importorskip("matplotlib")


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TASK_FILE)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("eval") / "data")


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def test_tasks_of_a_file_are_measured_and_found_again(
    thalweg_command: Command, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "--task-file", task_file, "--model", model_folder, "--against", "bm25", "-o", out]
    first = thalweg_command(*arguments)
    assert first.exit_code == 0, first.output
    for line in ("[1/3] tiny · MyPairs: cosine_spearman", "[2/3] tiny · MyNotes: ndcg_at_10", "[3/3] BM25 · MyNotes"):
        assert line in first.stderr
    results = read(out)
    assert [(score["model"], score["task"]) for score in results["scores"]] == [
        ("tiny", "MyPairs"),
        ("tiny", "MyNotes"),
        ("BM25", "MyNotes"),
    ]
    assert "mteb" in results["versions"]
    assert results["settings"]["max_length"] is None
    page = (out / "results.md").read_text()
    assert "| MyPairs | `cosine_spearman` |" in page
    assert "MTEB" not in page, "no benchmark was measured"

    again = thalweg_command(*arguments)
    assert again.stderr.count("(stored)") == 3
    assert read(out)["scores"] == results["scores"]
    once_more = thalweg_command(*arguments, "--overwrite")
    assert "(stored)" not in once_more.stderr


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"scores": 3}', "\udcff"])
def test_a_damaged_result_is_measured_again_and_named(
    thalweg_command: Command,
    model_folder: Path,
    task_file: Path,
    tmp_path: Path,
    content: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "--task-file", f"{task_file}:Pairs", "--model", model_folder, "-o", out]
    assert thalweg_command(*arguments).exit_code == 0
    before = read(out)["scores"]
    (stored,) = out.rglob("MyPairs.json")
    stored.write_bytes(content.encode("utf-8", "surrogateescape"))
    again = thalweg_command(*arguments)
    assert again.exit_code == 0, again.output
    assert "(stored)" not in again.stderr
    assert "the stored result of MyPairs is damaged" in caplog.text
    assert [score["score"] for score in read(out)["scores"]] == [score["score"] for score in before]
    assert "(stored)" in thalweg_command(*arguments).stderr


def test_another_cut_is_another_result(
    thalweg_command: Command, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "--task-file", f"{task_file}:Pairs", "--model", model_folder, "-o", out]
    assert "(stored)" not in thalweg_command(*arguments).stderr
    cut = thalweg_command(*arguments, "--max-length", 2)
    assert cut.exit_code == 0
    assert "(stored)" not in cut.stderr
    assert "tiny, cut at 2 tokens" in cut.stderr
    assert read(out)["settings"]["max_length"] == 2


@pytest.mark.slow
def test_the_local_suite(thalweg_command: Command, model_folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--needle-lengths", "64,256", "--needle-documents", 8, "--needle-queries", 4, "--against", "bm25"]
    result = thalweg_command("eval", "--suite", "local", "--data", data, "--model", model_folder, *arguments, "-o", out)
    assert result.exit_code == 0, result.output
    results = read(out)
    tasks = {score["task"] for score in results["scores"]}
    assert {"local-sts-pairs", "local-clustering-topics", "local-needle-64", "local-passkey-256"} <= tasks
    notes = next(score for score in results["scores"] if score["task"] == "local-retrieval-notes")
    assert {edge: queries for edge, (_, queries) in notes["by_document_length"].items()} == {"0": 3, "1024": 1}
    needle = next(score for score in results["scores"] if score["task"] == "local-needle-256")
    assert needle["by_document_length"] == {}, "its documents have one length"
    page = (out / "results.md").read_text()
    assert "They belong to no benchmark" in page
    assert "| local-retrieval-notes | 1,024–4,095 | 1 |" in page
    for name in ("score-against-length", "score-by-document-length"):
        assert f"({name}.png)" in page
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "</svg>" in (out / f"{name}.svg").read_text()


def test_only_picks_tasks(thalweg_command: Command, model_folder: Path, data: Path, tmp_path: Path) -> None:
    common = ["eval", "--suite", "local", "--data", data, "--model", model_folder, "-o", tmp_path / "out"]
    result = thalweg_command(*common, "--only", "*-sts-*")
    assert result.exit_code == 0
    assert [score["task"] for score in read(tmp_path / "out")["scores"]] == ["local-sts-pairs"]
    wrong = thalweg_command(*common, "--only", "*needel*")
    assert wrong.exit_code == 1
    assert "no task is called '*needel*'; there are local-sts-pairs" in wrong.stderr


def test_a_task_that_fails_is_reported_and_the_others_go_on(
    thalweg_command: Command, model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(TASK_FILE.replace('rows = [("a boat"', 'raise OSError("the disk is gone"); rows = [("a boat"'))
    out = tmp_path / "out"
    result = thalweg_command("eval", "--task-file", path, "--model", model_folder, "-o", out)
    assert result.exit_code == 3
    assert "tiny on MyPairs: OSError: the disk is gone" in result.stderr
    results = read(out)
    assert [score["task"] for score in results["scores"]] == ["MyNotes"]
    assert results["failures"] == [{"model": "tiny", "task": "MyPairs", "error": "OSError: the disk is gone"}]
    assert "the disk is gone" in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark", "MTEB(engl, v2)"], "Did you mean"),
        (["--task", "STSBenchmrk"], "STSBenchmrk"),
        (["--task-file", "nowhere.py"], "nowhere.py"),
        (["--task-file", "json"], "no subclass of an mteb task"),
        (["--task-file", "json:Loads"], "no task 'Loads'"),
    ],
)
def test_what_does_not_exist_is_told_in_one_line(
    thalweg_command: Command, tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = thalweg_command("eval", *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--suite", "local"],
        ["--data", "."],
        ["--suite", "global", "--data", "."],
        ["--task", "STS12", "--max-length", "some"],
        ["--task", "STS12", "--max-length", "0"],
        ["--task", "STS12", "--max-length", "²"],
        ["--task", "STS12", "--max-length", "9" * 5000],
        ["--suite", "local", "--data", ".", "--needle-lengths", "64,many"],
        ["--suite", "local", "--data", ".", "--needle-documents", "101"],
        ["--task", "STS12", "--instructions", "all"],
    ],
)
def test_wrong_usage_exits_with_2(thalweg_command: Command, arguments: list[str]) -> None:
    assert thalweg_command("eval", *arguments).exit_code == 2


def test_help_teaches(thalweg_command: Command) -> None:
    result = thalweg_command("eval", "--help")
    for words in (
        "--benchmark",
        "MTEB(eng, v2)",
        "--task-file",
        "Example: thalweg eval --suite local",
        "130 interrupted",
    ):
        assert words in result.output


BLOCKED = '''

import time
from pathlib import Path


class Slow(Notes):
    """Does not get past its data until the file is there."""

    metadata = metadata("Slow", "Retrieval", "ndcg_at_10")

    def load_data(self, **kwargs):
        Path({started!r}).touch()
        while not Path({go!r}).exists():
            time.sleep(0.02)
        super().load_data()
'''


def command(arguments: list[str]) -> None:
    """`thalweg` as the body of a process."""
    from thalweg.cli.app import app

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    app(arguments)


@pytest.mark.kill
@pytest.mark.subprocess
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("kind", "exit_code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_is_broken_off_goes_on_where_it_was(
    thalweg_command: Command, model_folder: Path, tmp_path: Path, kind: signal.Signals, exit_code: int
) -> None:
    started, go, out = tmp_path / "started", tmp_path / "go", tmp_path / "out"
    path = tmp_path / "blocked.py"
    path.write_text(TASK_FILE + BLOCKED.format(started=str(started), go=str(go)))
    arguments = ["eval", "--task-file", path, "--model", model_folder, "-o", out]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mteb", "thalweg.embedder.embedder", "thalweg.cli.app", __name__])
    process = context.Process(target=command, args=([str(argument) for argument in arguments],))
    process.start()
    try:
        for _ in range(3000):
            if started.exists():
                break
            time.sleep(0.02)
        assert started.exists(), "the third task was not reached"
        assert process.pid is not None
        os.kill(process.pid, kind)
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == exit_code
    assert (out / "results.json").exists() == (kind == signal.SIGINT), "an interrupted run reports what it has"

    go.touch()
    whole = thalweg_command(*arguments)
    assert whole.exit_code == 0, whole.output
    stored = [line.split(" · ")[1].split(":")[0] for line in whole.stderr.splitlines() if "(stored)" in line]
    assert stored == ["MyPairs", "MyNotes"]
    assert [score["task"] for score in read(out)["scores"]] == ["MyPairs", "MyNotes", "Slow"]
    undisturbed = tmp_path / "undisturbed"
    assert thalweg_command(*arguments[:-1], undisturbed).exit_code == 0
    assert scores(read(undisturbed)) == scores(read(out))


def scores(results: dict[str, Any]) -> dict[str, float]:
    return {score["task"]: score["score"] for score in results["scores"]}


def test_without_the_extra_the_pip_command_is_told(
    thalweg_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from thalweg.evaluation import extras

    monkeypatch.setattr(extras, "PACKAGES", (*extras.PACKAGES, "a_package_nobody_has"))
    result = thalweg_command("eval", "--task", "STS12", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "thalweg eval needs a_package_nobody_has: pip install 'thalweg[eval]'" in result.stderr
