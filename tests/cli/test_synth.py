"""`thalweg synth` from end to end: output, exit codes, and kill -9 at random moments."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from ..synthesis.faults import unreliable
from ..synthesis.server import Answer, Endpoint, Request, endpoint, good_answer
from .conftest import Command

KILLS = 5

COUNTS = "short-long=6,long-short=6,short-short=4,long-long=4,sts=6,bitext=6"


def arguments(server: Endpoint, out: Path, *more: object) -> list[str]:
    common = ["synth", "--base-url", server.url, "--model", "model", "-o", out, "--language", "English"]
    return [str(argument) for argument in [*common, "--language", "Greek", *more]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_says_what_came_of_it(thalweg_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with endpoint(unreliable) as server:
        command = arguments(server, out, "--counts", COUNTS, "--price", 1, 2, "--attempts", 20)
        result = thalweg_command(*command)
        assert result.exit_code == 0, result.output
        assert "32 examples, " in result.stderr
        assert ", cost 0.0" in result.stderr
        assert f"all are in {out / 'rejected.jsonl'}" in result.stderr
        n = len(server.requests)
        again = thalweg_command(*command)
        assert again.exit_code == 0
        assert "32 examples (32 from before)" in again.stderr
        assert len(server.requests) == n
        assert thalweg_command(*command, "--quiet").output == ""
    assert [path.name for path in sorted((out / "data").iterdir())] == sorted(
        f"{part.partition('=')[0]}.jsonl" for part in COUNTS.split(",")
    )


def test_the_same_command_continues_once_the_endpoint_is_mended(thalweg_command: Command, tmp_path: Path) -> None:
    with endpoint(lambda request: Answer("Welcome to nginx!")) as server:
        command = arguments(server, tmp_path / "out", "--counts", "short-long=3", "--attempts", 1)
        for _ in range(2):
            result = thalweg_command(*command)
            assert result.exit_code == 1
            assert "the same command continues" in result.stderr
        n = len(server.requests)
        server.behave = good_answer
        result = thalweg_command(*command)
        assert len(server.requests) > n
    assert result.exit_code == 0, result.output
    assert "3 examples" in result.stderr
    assert len(lines(tmp_path / "out" / "data" / "short-long.jsonl")) == 3


def test_one_language_leaves_translations_out(thalweg_command: Command, tmp_path: Path) -> None:
    with endpoint() as server:
        common = ["--base-url", server.url, "--model", "m", "--total", 60, "--language", "English"]
        result = thalweg_command("synth", *common, "-o", tmp_path / "out")
        dry = thalweg_command("synth", *common, "-o", tmp_path / "dry", "--dry-run")
        quiet = thalweg_command("synth", *common, "-o", tmp_path / "quiet", "--quiet")
    assert result.exit_code == 0, result.output
    words = "bitext is left out, as a translation needs two languages and English is the only one"
    for each in (result, dry):
        assert words in each.stderr
    assert "and 60 for examples" in dry.stdout
    assert quiet.output == ""
    data = {path.stem: len(lines(path)) for path in (tmp_path / "out" / "data").iterdir()}
    assert "bitext" not in data
    assert sum(data.values()) == 60


def test_examples_that_are_given_up_are_told_by_the_exit_code(thalweg_command: Command, tmp_path: Path) -> None:
    def behave(request: Request) -> Answer:
        return Answer("I'm sorry, but no.") if request.chance < 0.5 else good_answer(request)

    with endpoint(behave) as server:
        result = thalweg_command(*arguments(server, tmp_path / "out", "--counts", "sts=9", "--attempts", 1))
    assert result.exit_code == 3
    n = len(lines(tmp_path / "out" / "rejected.jsonl"))
    assert 0 < n < 9
    assert f"{n} rejected (refusal {n})" in result.stderr
    assert f"{n} examples of 9 given up after 1 attempt:" in result.stderr


def test_a_dry_run_prints_prompts_and_calls_nothing(thalweg_command: Command, tmp_path: Path) -> None:
    with endpoint() as server:
        result = thalweg_command(*arguments(server, tmp_path / "out", "--total", 100, "--dry-run"))
        assert not server.requests
    assert result.exit_code == 0
    for words in ("tasks/short-long/0", "Think of 20 different tasks", "bitext/0", "at least 6 requests for tasks"):
        assert words in result.stdout
    assert not (tmp_path / "out").exists()
    assert thalweg_command("synth", "-o", tmp_path / "out", "--total", 5, "--dry-run").exit_code == 0


def test_the_key_comes_from_the_environment(
    thalweg_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint() as server:
        command = arguments(server, tmp_path / "out", "--counts", "sts=1", "--api-key-env")
        assert thalweg_command(*command, "MY_KEY").exit_code == 0
        assert server.requests[0].headers["Authorization"] == "Bearer secret"
        result = thalweg_command(*command, "OTHER_KEY")
        assert result.exit_code == 1
        assert "the environment variable OTHER_KEY of --api-key-env is not set" in result.stderr
        server.behave = lambda request: Answer(status=401, body='{"error": {"message": "who are you?"}}')
        result = thalweg_command(*arguments(server, tmp_path / "new", "--counts", "sts=1"))
        assert result.exit_code == 1
        assert "who are you?" in result.stderr
        assert "OPENAI_API_KEY, which is not set" in result.stderr
    for path in (tmp_path / "out").rglob("*.json*"):
        assert "secret" not in path.read_text()


def test_negatives_are_mined_with_a_model(
    thalweg_command: Command, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with endpoint() as server:
        command = arguments(server, tmp_path / "out", "--counts", "short-short=5,sts=2", "--mine", model_folder)
        result = thalweg_command(*command)
        assert result.exit_code == 0, result.output
        assert all(len(row["negatives"]) == 1 for row in lines(tmp_path / "out" / "data" / "short-short.jsonl"))
        assert thalweg_command(*command, "--mine-type", "sts").exit_code == 0
    assert all(len(row["negatives"]) == 2 for row in lines(tmp_path / "out" / "data" / "sts.jsonl"))


def test_only_mining_needs_the_packages_of_training(
    thalweg_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("datasets", "transformers", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with endpoint() as server:
        command = arguments(server, tmp_path / "out", "--counts", "sts=2")
        assert thalweg_command(*command).exit_code == 0
        result = thalweg_command(*command, "--mine", "default")
    assert result.exit_code == 1
    assert "pip install 'thalweg[train]'" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--counts", "stss=3"], "unknown task type 'stss'"),
        (["--counts", "bitext=3"], "bitext needs two languages"),
        (["--counts", "sts=3", "--language", "Klingon"], "unknown language 'Klingon'"),
        (["--counts", "sts=3", "--body", "[1]"], "--body takes a JSON object, but got '[1]'"),
        (["--counts", "sts=3", "--base-url", "localhost"], "'localhost' is no base URL"),
        (["--counts", "sts=3", "--mine", "x", "--mine-type", "y"], "unknown task type 'y'"),
    ],
)
def test_wrong_values_are_told_in_one_line(
    thalweg_command: Command, tmp_path: Path, options: list[str], message: str
) -> None:
    common = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "-o", tmp_path / "out", "--language", "English"]
    result = thalweg_command("synth", *common, *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--total", "5", "--counts", "sts=5"],
        ["--total", "0"],
        ["--total", "5", "--mine-type", "sts"],
        ["--total", "5", "--price", "1"],
    ],
)
def test_wrong_usage_exits_with_2(thalweg_command: Command, options: list[str]) -> None:
    common = ["synth", "--base-url", "http://127.0.0.1:9/v1", "--model", "m", "-o", "out"]
    assert thalweg_command(*common, *options).exit_code == 2


def test_without_an_endpoint_only_a_dry_run_is_right(thalweg_command: Command) -> None:
    assert thalweg_command("synth", "-o", "out", "--total", 5).exit_code == 2


def command(arguments: list[str]) -> None:
    """`thalweg` as the body of a process."""
    from thalweg.cli.app import app

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    app(arguments)


@pytest.fixture
def forked() -> multiprocessing.context.ForkServerContext:
    """Processes that need not import torch each time; in all else they are like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thalweg.synthesis.run", "thalweg.cli.app", __name__])
    return context


def start(context: multiprocessing.context.ForkServerContext, server: Endpoint, out: Path) -> BaseProcess:
    options = ["--counts", COUNTS, "--attempts", 20, "--concurrency", 3]
    process = context.Process(target=command, args=(arguments(server, out, *options),))
    process.start()
    return process


def end(process: BaseProcess, server: Endpoint, after: int, by: signal.Signals) -> None:
    """Send a signal when the server has had so many more requests."""
    target = len(server.requests) + after
    while len(server.requests) < target and process.is_alive():
        time.sleep(0.005)
    assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, by)
    process.join(400)


def slow(request: Request) -> Answer:
    answer = unreliable(request)
    answer.wait = 0.02
    return answer


@pytest.mark.kill
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(
    forked: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    rng = random.Random(3)
    with endpoint(slow) as server:
        process = start(forked, server, whole)
        process.join(400)
        assert process.exitcode == 0
        undisturbed = len(server.requests)
    with endpoint(slow) as server:
        for _ in range(KILLS):
            end(start(forked, server, out), server, rng.randint(1, 12), signal.SIGKILL)
        process = start(forked, server, out)
        process.join(400)
        assert process.exitcode == 0
        # What was under way is asked again: at most as many requests as go out at a time.
        assert len(server.requests) <= undisturbed + 3 * KILLS
    for name in ("tasks.jsonl", "examples.jsonl", "rejected.jsonl"):
        left, right = (sorted(map(json.dumps, lines(folder / name))) for folder in (whole, out))
        assert left == right
        assert len(set(left)) == len(left)
    for path in [*sorted(whole.rglob("data/*")), whole / "pairs.jsonl", whole / "report.json"]:
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes(), path


@pytest.mark.kill
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_run_ends_with_130(forked: multiprocessing.context.ForkServerContext, tmp_path: Path) -> None:
    with endpoint(slow) as server:
        process = start(forked, server, tmp_path / "out")
        end(process, server, 10, signal.SIGINT)
    assert process.exitcode == 130
    assert (tmp_path / "out" / "examples.jsonl").read_text().endswith("\n")
