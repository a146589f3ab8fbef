"""`thalweg train`: from a command to a model folder, and what it says where that cannot be."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import thalweg

from ..corpus.tiny import write_model
from ..training.training_data import write_pairs, write_sts
from .conftest import Command

QUICK = ["--set", "batch_size=16", "--set", "warmup_steps=1", "--set", "max_steps=6", "--set", "save_every=4"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "model": write_model(tmp_path / "base", pooling="last"),
        "pairs": write_pairs(tmp_path / "pairs.jsonl", 32, negatives=2),
        "sts": write_sts(tmp_path / "sts.jsonl"),
        "out": tmp_path / "out",
    }


@pytest.mark.training
def test_a_run_and_what_it_leaves(thalweg_command: Command, files: dict[str, Path]) -> None:
    out = files["out"]
    arguments = ["train", files["model"], files["pairs"], "-o", out, "--recipe", "tiny", *QUICK]
    arguments += ["--set", "max_length=9", "--dev", files["sts"], "--dev", files["pairs"]]
    done = thalweg_command(*arguments)
    assert done.exit_code == 0, done.output
    assert "6 steps" in done.stderr
    assert "step 0: sts Spearman " in done.stderr
    assert ", pairs nDCG@10 " in done.stderr
    assert f"Next: thalweg embed FOLDER --model {out} -o vectors.parquet" in done.stderr
    assert "texts were cut to max_length" in done.stderr
    assert not Path(f"{out}.run").exists()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 7))
    assert steps[0]["learning_rate"] == 1e-3
    assert steps[1]["learning_rate"] == 2e-3
    assert steps[-1]["learning_rate"] < steps[2]["learning_rate"]
    assert [(entry["step"], list(entry["dev"])) for entry in log if "dev" in entry] == [
        (0, ["sts", "pairs"]),
        (6, ["sts", "pairs"]),
    ]
    assert all(entry["metric"] == {"sts": "Spearman", "pairs": "nDCG@10"} for entry in log if "dev" in entry)
    written = json.loads((out / "recipe.json").read_text())
    assert written["recipe"]["batch_size"] == 16
    assert written["data"][0]["rows"] == 32
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "tensorboard").exists() == (importlib.util.find_spec("tensorboard") is not None)
    card = (out / "README.md").read_text()
    for part in (
        "# out\n",
        "## Training",
        "Trained by `thalweg train`",
        f"{steps[-1]['tokens']:,}",
        "| sts | Spearman | ",
        "| pairs | nDCG@10 | ",
    ):
        assert part in card
    assert str(out.parent) not in card + json.dumps(written)
    before, after = thalweg.load(files["model"]), thalweg.load(out)
    assert np.abs(before.encode(["the river"]) - after.encode(["the river"])).max() > 1e-3
    peer = SentenceTransformer(str(out), trust_remote_code=True, device="cpu")
    assert np.abs(peer.encode(["the river"]) - after.encode(["the river"])).max() <= 1e-5
    assert thalweg_command(*arguments, "--resume").stderr.strip().endswith("is complete; nothing to do")
    again = thalweg_command(*arguments[:5], "--overwrite", "--recipe", out / "recipe.json")
    assert again.exit_code == 0, again.output
    assert (out / "model.safetensors").stat().st_size > 0
    assert [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()] == [
        entry["loss"] for entry in steps
    ]


@pytest.mark.training
def test_the_instruction_stands_before_queries_only(thalweg_command: Command, files: dict[str, Path]) -> None:
    """And the trained model puts it before queries from then on."""
    rows = [json.loads(line) for line in files["pairs"].read_text().splitlines()]
    with files["pairs"].open("w") as file:
        file.writelines(json.dumps({**row, "instruction": "find the answer"}) + "\n" for row in rows)
    tokens = {}
    for setting in ("true", "false"):
        out = files["out"].with_name(setting)
        done = thalweg_command(
            *["train", files["model"], files["pairs"], "-o", out, "--recipe", "tiny", *QUICK, "-q"],
            *["--set", f"instructions={setting}", "--set", "max_length=none", "--set", "max_steps=2"],
        )
        assert done.exit_code == 0, done.output
        assert done.stderr == ""
        tokens[setting] = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["tokens"]
    instruction = "Instruct: find the answer\nQuery: "
    per_query = len(thalweg.load(files["model"]).tokenize([instruction])[0]) - 1
    assert abs((tokens["true"] - tokens["false"]) - 32 * per_query) <= 32  # a token may reach over the border


@pytest.mark.training
def test_adapters_are_merged(thalweg_command: Command, files: dict[str, Path]) -> None:
    done = thalweg_command(
        *["train", files["model"], files["pairs"], "-o", files["out"], "--recipe", "e5-mistral", *QUICK],
        *["--set", "learning_rate=1e-2", "--set", "lora_rank=4"],
    )
    assert done.exit_code == 0, done.output
    before, after = (thalweg.load(files[name]).model.state_dict() for name in ("model", "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("in_proj.weight", "out_proj.weight"))}


@pytest.mark.slow
def test_a_first_try_with_defaults_on_little_data(thalweg_command: Command, files: dict[str, Path]) -> None:
    """600 rows are one step of the default's 2,048: it is made, at the full rate, and better advice is given."""
    write_pairs(files["pairs"], 600, words=3)
    out = files["out"]
    done = thalweg_command("train", files["model"], files["pairs"], "-o", out)
    assert done.exit_code == 0, done.output
    assert "the run has 1 step, fewer than the warm-up of 100 steps, so warmup_steps=0 is used" in done.stderr
    assert "--set batch_size=16 makes more of them" in done.stderr
    assert "1 step, " in done.stderr
    (step,) = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert step["learning_rate"] == 4e-4
    assert json.loads((out / "recipe.json").read_text())["recipe"]["warmup_steps"] == 0
    before, after = (thalweg.load(files[name]).encode(["the river"]) for name in ("model", "out"))
    assert np.abs(before - after).max() > 0
    advised = thalweg_command(
        *["train", files["model"], files["pairs"], "-o", out, "--overwrite", "--set", "batch_size=16"]
    )
    assert advised.exit_code == 0, advised.output
    assert "the run has 38 steps, fewer than the warm-up of 100 steps, so warmup_steps=3 is used" in advised.stderr
    assert "makes more of them" not in advised.stderr


def test_a_recipe_is_shown(thalweg_command: Command) -> None:
    shown = thalweg_command("train", "--recipe", "e5-mistral", "--print", "--set", "learning_rate=1e-3")
    assert shown.exit_code == 0
    for part in ("temperature=0.02", "batch_size=2048", "lora_rank=16", "learning_rate=0.001", "of AdamW"):
        assert part in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "learning_rate=fast"], "learning_rate='fast': a number is wanted"),
        (["--recipe", "nonsense"], "there is no recipe 'nonsense'"),
        (["--recipe", "distill", *QUICK], "distill needs a teacher"),
        (["--recipe", "distill", "--teacher", "/none", *QUICK], "cannot load '/none'"),
        (["--set", "quantize_4bit=true", *QUICK], "quantize_4bit=true needs a CUDA device, but this run is on 'cpu'"),
        (["--set", "matryoshka=64", *QUICK], "matryoshka=64 is wider than the model's vectors, which have 32"),
        (["--device", "cuda:7"], "device must be cpu, cuda or mps, got 'cuda:7'"),
        (["--device", "gpu"], "device must be cpu, cuda or mps, got 'gpu'"),
        (["--device", "mps"], "device 'mps' cannot be used: it takes a Mac"),
        (["--set", "seed=4294967296"], "seed must be below 2**32, got 4294967296"),
        (["--set", "learning_rate=inf"], "learning_rate=inf: a number is wanted"),
        (["--set", "temperature=inf"], "temperature=inf: a number is wanted"),
        (["--set", "name=\ud800"], "is not text: it holds a lone surrogate"),
        (["--set", "temperature=1e-300", "--recipe", "tiny", *QUICK], "the loss is nan in step 1; nothing has been"),
        (["--dev", "none.jsonl", *QUICK], "dev set none.jsonl is no file"),
        (["--set", "learning_rate=1e30", "--recipe", "tiny", *QUICK], "the loss is nan in step"),
    ],
)
def test_errors_are_told_in_one_line(
    thalweg_command: Command, files: dict[str, Path], options: list[str], message: str
) -> None:
    done = thalweg_command("train", files["model"], files["pairs"], "-o", files["out"], "--device", "cpu", *options)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not files["out"].exists()
    assert not Path(f"{files['out']}.run").exists()


def test_memory_that_is_short_is_told_with_a_cure(
    thalweg_command: Command, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("thalweg.training.trainer.Trainer.compute_loss", fail)
    options = ["--recipe", "tiny", *QUICK]
    done = thalweg_command("train", files["model"], files["pairs"], "-o", files["out"], *options)
    assert done.exit_code == 1
    assert "error: there is not enough memory for step 1 (" in done.stderr
    assert "lower mini_batch_tokens=16384 with gradient_cache=true, or set vertical_chunk_size=256" in done.stderr


def test_what_is_there_is_not_touched(thalweg_command: Command, files: dict[str, Path]) -> None:
    arguments: list[Any] = ["train", files["model"], files["pairs"], "-o", files["out"], "--recipe", "tiny", *QUICK]
    folder = Path(f"{files['out']}.run")
    folder.mkdir()
    (folder / "letters.txt").write_text("dear")
    assert "is in the way, as it holds no training run" in thalweg_command(*arguments, "--overwrite").stderr
    (folder / "letters.txt").rename(folder / "run.json")
    (folder / "run.json").write_text(json.dumps({"recipe": {"batch_size": 8}}))
    assert "holds a run that was broken off; go on with --resume" in thalweg_command(*arguments).stderr
    (folder / "checkpoint-4").mkdir()
    refused = thalweg_command(*arguments, "--resume")
    assert refused.exit_code == 1
    assert "was begun with" in refused.stderr
    files["out"].mkdir()
    (files["out"] / "letters.txt").write_text("dear")
    assert "exists and is no model, so it is not replaced" in thalweg_command(*arguments, "--overwrite").stderr
    assert "exists; choose another folder" in thalweg_command(*arguments).stderr
    assert (files["out"] / "letters.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"query": "a"}\n', "its first row has query"),
        ('{"sentence1": "a", "score": 1}\n', "'sentence2' must be a text"),
        ("{", "line 1: not JSON"),
        ("3\n", "line 1: a JSON object was expected"),
        ('\n{"sentence1": "a", "sentence2": "b", "score": 1}\n[1]\n', "line 3: a JSON object was expected"),
        ("[" * 100_000 + "\n", "line 1: not JSON"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n', "every score is 1"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n' * 3, "every score is 1"),
        ('{"sentence1": "a", "sentence2": "b", "score": NaN}\n' * 3, "'score' must be a number, but a row has nan"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1e999}\n', "'score' must be a number, but a row has inf"),
        (f'{{"sentence1": "a", "sentence2": "b", "score": 1{"0" * 400}}}\n', "'score' must be a number"),
        ('{"query": "a", "positive": []}\n', "the query 'a' has no positive"),
        ('{"query": "a", "positive": [null]}\n', "'positive' must be a text"),
    ],
)
def test_dev_sets_that_are_none(thalweg_command: Command, files: dict[str, Path], rows: str, message: str) -> None:
    files["sts"].write_text(rows)
    done = thalweg_command("train", files["model"], files["pairs"], "-o", files["out"], "--dev", files["sts"])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert message in done.stderr


def test_a_dev_set_that_is_a_damaged_archive(thalweg_command: Command, files: dict[str, Path]) -> None:
    path = files["sts"].with_name("sts.jsonl.gz")
    whole = gzip.compress(files["sts"].read_bytes())
    for content in (whole[:-20], whole[:30] + b"garbage" * 9, b"no gzip"):
        path.write_bytes(content)
        done = thalweg_command("train", files["model"], files["pairs"], "-o", files["out"], "--dev", path)
        assert done.exit_code == 1
        assert "sts.jsonl.gz: the gzip data" in done.stderr


def test_a_dev_set_without_an_order_ends_the_run(thalweg_command: Command, files: dict[str, Path]) -> None:
    """To any model its pairs are equally similar; a score that is no number is not written down."""
    rows = [json.dumps({"sentence1": "the river", "sentence2": "the sea", "score": score}) for score in (1, 2, 3)]
    files["sts"].write_text("\n".join(rows))
    options = ["--recipe", "tiny", *QUICK, "--dev", files["sts"]]
    done = thalweg_command("train", files["model"], files["pairs"], "-o", files["out"], *options)
    assert done.exit_code == 1
    assert "Spearman of the dev set sts in step 0 is nan: to the model all of its texts are equally" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["model"], ["model", "data"], ["m", "d", "-o", "x", "--resume", "--overwrite"]]
)
def test_wrong_usage(thalweg_command: Command, arguments: list[str]) -> None:
    assert thalweg_command("train", *arguments).exit_code == 2


def test_help(thalweg_command: Command) -> None:
    shown = thalweg_command("train", "--help")
    for part in ("MODEL", "DATA...", "--recipe", "--set", "--resume", "--dev", "Example: thalweg train"):
        assert part in shown.output
