"""`thalweg bench` and `thalweg compare` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thalweg.bench.results import read_rows
from thalweg.cli.bench_progress import told

from ..bench.points import row, tiny
from .conftest import Command

SMALL = ("--layers", 1, "--vocabulary", 64, "--threads", 1, "--repeat", 2)


@pytest.mark.subprocess
def test_a_study_and_its_report(thalweg_command: Command, tmp_path: Path) -> None:
    out, report = tmp_path / "bench", tmp_path / "results.md"
    arguments = ["bench", "--shape", "mamba2-130m", "--length", "32,64", "-V", 16, *SMALL, "--device", "cpu", "-o", out]
    done = thalweg_command(*arguments, "--report", report)
    assert done.exit_code == 0, done.output
    rows = read_rows(out)
    assert [(row["point"]["length"], row["point"].get("vertical_chunk_size")) for row in rows] == [
        (32, 16),
        (32, None),
        (64, 16),
        (64, None),
    ]
    assert {row["status"] for row in rows} == {"ok"}
    assert "4 of 4, 0:00 left" in done.stderr
    assert "tokens/s" in done.stdout
    assert {path.name for path in out.iterdir()} >= {"results.jsonl", "results.csv", "length.png", "length.svg"}
    assert "length.png" in report.read_text()
    before = (out / "results.jsonl").read_bytes()
    again = thalweg_command(*arguments)
    assert again.exit_code == 0
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.subprocess
@pytest.mark.kill
def test_a_failing_point(thalweg_command: Command, tmp_path: Path) -> None:
    done = thalweg_command(
        "bench", "--shape", "mamba2-130m", "--length", "64", *SMALL, "--memory-limit", 0.1, "-o", tmp_path / "bench"
    )
    assert done.exit_code == 0, done.output
    assert "out of memory: more than the limit of 0.1 GiB" in " ".join(done.stdout.split())
    assert {row["status"] for row in read_rows(tmp_path / "bench")} == {"out of memory"}
    more = ("--memory-limit", 4, "--time-limit", 300, "--retry")
    again = thalweg_command(
        "bench", "--shape", "mamba2-130m", "--length", "64", *SMALL, *more, "-o", tmp_path / "bench"
    )
    assert again.exit_code == 0, again.output
    assert {row["status"] for row in read_rows(tmp_path / "bench")} == {"ok"}


@pytest.mark.subprocess
def test_an_error_is_shown_and_does_not_last(thalweg_command: Command, tmp_path: Path) -> None:
    """Only the points of this command decide about its exit code."""
    broken = ("--shape", "mistral-130m", "--attention", "flash_attention_2")
    done = thalweg_command("bench", *broken, "--length", "16", *SMALL, "--device", "cpu", "-o", tmp_path)
    assert done.exit_code == 3, done.output
    assert "error: " in done.stdout
    assert "points: 1" in done.stderr
    whole = thalweg_command(
        "bench", "--shape", "mistral-130m", "--length", "16", *SMALL, "--device", "cpu", "-o", tmp_path
    )
    assert whole.exit_code == 0, whole.output


@pytest.mark.subprocess
def test_a_loaded_machine_is_warned_of(
    thalweg_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.bench.machine.cores_in_use", lambda: 1.7)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    arguments = ["bench", "--shape", "mamba2-130m", "--length", "16", *SMALL, "--device", "cpu", "-o", tmp_path]
    done = thalweg_command(*arguments)
    assert done.exit_code == 0, done.output
    assert "warning: other programs use 1.7 of 2 cores, so times will be too long" in done.stderr
    assert "warning" not in thalweg_command(*arguments, "--quiet").stderr
    monkeypatch.setattr("thalweg.bench.machine.cores_in_use", lambda: 0.1)
    assert "warning" not in thalweg_command(*arguments).stderr


def test_what_is_said_of_single_and_disturbed_runs() -> None:
    point = row(tiny())
    assert "only" not in told(point)[1]
    point["seconds"]["all"] = [1.0]
    point |= {"other_cores": 1.4, "machine": {"cores": 2}}
    assert told(point)[1].endswith(", one run only, while other programs used 1.4 of 2 cores")


def test_dry_run_and_lists(thalweg_command: Command, tmp_path: Path) -> None:
    shapes = thalweg_command("bench", "--list-shapes")
    assert "codestral-7b" in shapes.stdout
    dry = thalweg_command("bench", "--quick", "--device", "cpu", "--dry-run", "-o", tmp_path / "bench")
    assert "RWKV-7, 2 × 768, V = 1,024, 4,096 tokens, float32, cpu" in dry.stdout
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--length", "many"), 2, "'many' is no number of tokens or texts: write 512, 16k"),
        (("--length", "9" * 5000), 2, "is no number of tokens or texts"),
        (("--length", "9999999M"), 2, "'9999999M' is no number of tokens or texts"),
        (("-V", "0"), 2, "'0' is no number of tokens or texts"),
        (("--device", "gpu"), 1, "device 'gpu' cannot be used: it must be cpu, cuda"),
        (("--shape", "gpt-5"), 1, "there is no shape 'gpt-5'"),
        (("--study", "speed"), 1, "there is no study 'speed'; the studies: length, chunk, batch, peers"),
        (("--dtype", "int4"), 2, "'int4' is not one of 'float32', 'bfloat16', 'float16'"),
        (("--attention", "none"), 2, "'none' is not one of 'sdpa', 'flash_attention_2', 'eager'"),
        (("--device", "abacus"), 1, "device 'abacus' cannot be used"),
        (("--quick", "--length", "5"), 2, "--quick measures a set of its own"),
        (("--report", "r.md"), 1, "holds no results"),
    ],
)
def test_wrong_usage(
    thalweg_command: Command, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    done = thalweg_command("bench", "--out", tmp_path / "none", "--device", "cpu", *arguments)
    assert done.exit_code == exit_code
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.subprocess
def test_compare(thalweg_command: Command, model_folder: Path, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    settings = ("--a", "threads=1", "--b", "threads=1,dtype=bfloat16", "--repeat", 1)
    done = thalweg_command("compare", model_folder, "--texts", docs, *settings, "-o", out)
    assert done.exit_code == 0, done.output
    for words in ("cosine of A and B, mean", "shared of the", "tokens/s", "peak memory", "bfloat16"):
        assert words in done.stdout
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["agreement"]["cosine"]["mean"] > 0.99
    assert found["agreement"]["verdict"] in done.stdout
    printed = thalweg_command("compare", model_folder, "--texts", docs, *settings, "--json")
    assert json.loads(printed.stdout)["agreement"]["n"] == found["agreement"]["n"]


def test_compare_refuses(thalweg_command: Command, model_folder: Path) -> None:
    assert "--texts is missing" in thalweg_command("compare", model_folder).output
    wrong = thalweg_command("compare", model_folder, "--texts", "x.txt", "--b", "speed=9")
    assert (wrong.exit_code, "'speed=9' is no setting" in wrong.output) == (1, True)
    stdin = thalweg_command("compare", model_folder, "--texts", "-")
    assert "stdin cannot be read twice" in stdin.output
