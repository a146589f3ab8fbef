"""A run broken off anywhere and resumed equals one that was not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import thalweg
from thalweg.corpus import Status
from thalweg.corpus.parts import Parts
from thalweg.corpus.rows import part_schema
from thalweg.errors import CorpusError
from thalweg.inputs.files import InputFile
from thalweg.inputs.streams import FileMeter, opened

from .corpora import assert_same_output, rows_of, run, write_corpus
from .tiny import write_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "docs")


class Crash(Exception):
    """Stands for the end of the process."""


def crash_after(steps: int) -> Any:
    """An `on_status` that lets so many steps pass."""
    left = [steps]

    def follow(status: Status) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    return follow


def broken_off(embedder: thalweg.Embedder, root: Path, out: Path, steps: int, **settings: Any) -> None:
    with pytest.raises(Crash):
        run(embedder, root, out, on_status=crash_after(steps), save_every=0.1, **settings)
    assert Parts.exist(out.with_name(f"{out.name}.parts"))


@pytest.mark.parametrize("settings", [{}, {"section_size": 64}, {"section_size": 64, "precision": "int8"}])
@pytest.mark.parametrize("name", ["out.parquet", "out.npy"])
def test_a_resumed_run_equals_an_undisturbed_one(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    settings = {**settings, "schedule": {"vertical_chunk_size": 256, "max_tokens_per_step": 1024}}
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    undisturbed = run(embedder, corpus, whole, **settings)
    for steps in (1, 3, 9):
        mode = "new" if steps == 1 else "resume"
        with pytest.raises(Crash):
            run(embedder, corpus, out, mode, on_status=crash_after(steps), save_every=0.1, **settings)
        assert not out.exists()
    resumed = run(embedder, corpus, out, "resume", **settings)
    if "precision" in settings:
        assert rows_of(whole)[0] == rows_of(out)[0]
        assert abs(rows_of(whole)[1].astype(int) - rows_of(out)[1].astype(int)).max() <= 1
    else:
        assert_same_output(whole, out)
    assert resumed.saved > 0
    assert resumed.new_tokens < undisturbed.new_tokens
    assert (resumed.documents, resumed.rows, resumed.failed) == (41, undisturbed.rows, undisturbed.failed)
    assert not list(tmp_path.glob("*.parts"))


def test_speed_settings_may_change(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    broken_off(embedder, corpus, out, 3, section_size=64)
    run(embedder, corpus, out, "resume", section_size=64, schedule={"max_in_flight": 1, "vertical_chunk_size": 100})
    run(embedder, corpus, tmp_path / "whole.parquet", section_size=64)
    assert_same_output(out, tmp_path / "whole.parquet")


def test_other_settings_are_named(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    broken_off(embedder, corpus, out, 2, section_size=64)
    with pytest.raises(CorpusError, match=r"\(precision was 'float32', is 'int8'; sections was 64, is 32\)"):
        run(embedder, corpus, out, "resume", section_size=32, precision="int8")
    other = thalweg.load(write_model(tmp_path / "other", seed=1, prompts={"query": "another"}), device="cpu")
    with pytest.raises(CorpusError, match=f"model was '{embedder.fingerprint}', is '{other.fingerprint}'"):
        run(other, corpus, out, "resume", section_size=64)
    run(embedder, corpus, out, "resume", section_size=64)


def test_other_inputs_are_named(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "docs"), tmp_path / "out.parquet"
    broken_off(embedder, corpus, out, 2)
    (corpus / "new.txt").write_text("new")
    with pytest.raises(CorpusError, match=r"the inputs are not those .*new.txt is new;.*--overwrite"):
        run(embedder, corpus, out, "resume")
    (corpus / "new.txt").unlink()
    (corpus / "h-last.txt").rename(tmp_path / "h-last.txt")
    with pytest.raises(CorpusError, match=r"h-last\.txt is gone"):
        run(embedder, corpus, out, "resume")
    (tmp_path / "h-last.txt").rename(corpus / "h-last.txt")
    status = (corpus / "d.csv").stat()
    os.utime(corpus / "d.csv", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(CorpusError, match=r"d\.csv has changed"):
        run(embedder, corpus, out, "resume")
    run(embedder, corpus, out, "overwrite")
    assert len(rows_of(out)[0]) == 41


def test_an_unfinished_run_is_not_lost_by_accident(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    broken_off(embedder, corpus, out, 2)
    with pytest.raises(CorpusError, match="unfinished run: continue it with --resume, or start over with --overwrite"):
        run(embedder, corpus, out)
    run(embedder, corpus, out, "overwrite")


def test_an_output_stands_until_its_replacement_is_complete(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    run(embedder, corpus / "d.csv", out)
    with pytest.raises(Crash):
        run(embedder, corpus, out, "overwrite", on_status=crash_after(2), save_every=0.1)
    assert len(rows_of(out)[0]) == 3
    run(embedder, corpus, out, "resume")
    assert len(rows_of(out)[0]) == 41


def test_resuming_a_complete_run_does_nothing(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    for name in ("out.parquet", "out.jsonl"):
        out = tmp_path / name
        first = run(embedder, corpus, out, "resume")  # nothing is there: it starts
        before = out.stat().st_mtime_ns
        again = run(embedder, corpus, out, "resume")
        assert again.nothing_to_do
        assert (again.documents, again.rows, again.failed) == (first.documents, first.rows, first.failed)
        assert out.stat().st_mtime_ns == before
        with pytest.raises(CorpusError, match=r"sections was None, is 9"):
            run(embedder, corpus, out, "resume", section_size=9)
        with pytest.raises(CorpusError, match="made from other files"):
            run(embedder, corpus / "d.csv", out, "resume")


def test_stdin_cannot_be_resumed(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="stdin cannot be read again"):
        run(embedder, Path("-"), tmp_path / "out.parquet", "resume")


def test_failed_documents_are_tried_again(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a disk that did not answer at first is embedded by the resumed run."""
    out = tmp_path / "out.parquet"

    def opened_sometimes(file: InputFile, meter: FileMeter) -> AbstractContextManager[BinaryIO]:
        if file.id == "b3.md":
            raise OSError(5, "Input/output error")
        return opened(file, meter)

    with monkeypatch.context() as patch:
        patch.setattr("thalweg.inputs.streams.opened", opened_sometimes)
        broken_off(embedder, corpus, out, 5, schedule={"vertical_chunk_size": 256, "max_tokens_per_step": 1024})
    run(embedder, corpus, out, "resume")
    assert len(rows_of(out)[0]) == 41


def test_two_runs_cannot_share_an_output(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    other = Parts(tmp_path / "out.parquet.parts", part_schema(32, with_text=True), 5)
    for mode in ("new", "resume", "overwrite"):
        with pytest.raises(CorpusError, match=rf"another run is writing to .* now \(process {os.getpid()}\); wait"):
            run(embedder, corpus, out, mode)
    other.close()
    run(embedder, corpus, out)


def test_a_work_folder_without_manifest_counts_for_nothing(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    """What a crash leaves that comes while the folder is made or removed."""
    folder, out = tmp_path / "out.parquet.parts", tmp_path / "out.parquet"
    folder.mkdir()
    for name in ("part-00000001.arrow", "manifest.json.tmp", "inputs.jsonl", "lock", "output.tmp"):
        (folder / name).write_text("rest")
    run(embedder, corpus / "d.csv", out)
    assert len(rows_of(out)[0]) == 3


def test_what_a_crash_leaves_of_a_folder_that_was_being_removed_goes(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "out.parquet.parts", tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("thalweg.storage.work_folder._remove", crash_after(1))
        with pytest.raises(Crash):
            run(embedder, corpus / "d.csv", out)
    assert folder.is_dir()
    assert run(embedder, corpus / "d.csv", out, "resume").nothing_to_do
    assert not folder.exists()


def test_a_folder_with_other_things_in_it_is_left_alone(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path
) -> None:
    (tmp_path / "out.parquet.parts").mkdir()
    (tmp_path / "out.parquet.parts" / "thesis.docx").write_text("x")
    with pytest.raises(CorpusError, match=r"thesis\.docx"):
        run(embedder, corpus, tmp_path / "out.parquet", "overwrite")


def test_damaged_work_folders_are_errors(corpus: Path, embedder: thalweg.Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    broken_off(embedder, corpus, out, 3)
    manifest, inputs = (tmp_path / "out.parquet.parts" / name for name in ("manifest.json", "inputs.jsonl"))
    whole = json.loads(manifest.read_text())
    lines = inputs.read_text()
    for content, told in (
        (json.dumps({**whole, "format": 99}), "another version"),
        (json.dumps({**whole, "settings": 5}), r"manifest of .* is damaged"),
        ("[]", r"manifest\.json is damaged"),
        ("{", r"manifest\.json is damaged"),
    ):
        manifest.write_text(content)
        with pytest.raises(CorpusError, match=f"{told}.*--overwrite"):
            run(embedder, corpus, out, "resume")
    manifest.write_text(json.dumps(whole))
    for content in ("{", "5", "[]", "[" * 100_000, lines[:-9]):
        inputs.write_text(content)
        with pytest.raises(CorpusError, match=r"inputs\.jsonl is damaged.*--overwrite"):
            run(embedder, corpus, out, "resume")
    inputs.write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"inputs\.jsonl is damaged"):
        run(embedder, corpus, out, "resume")
    inputs.write_text(lines)
    run(embedder, corpus, out, "overwrite")


@pytest.mark.parametrize("settings", [{"section_size": 64}, {}], ids=["sections", "whole"])
def test_a_part_that_the_disk_has_changed_is_made_again_and_named(
    corpus: Path, embedder: thalweg.Embedder, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """One bit of a vector, of an id, or a part cut short: every part in turn, alone and with the others."""
    whole = tmp_path / "whole.parquet"
    run(embedder, corpus, whole, **settings)
    schedule = {"vertical_chunk_size": 256, "max_tokens_per_step": 512}
    for number in range(4):
        out = tmp_path / f"{number}.parquet"
        with pytest.raises(Crash):
            run(embedder, corpus, out, on_status=crash_after(9), save_every=0, schedule=schedule, **settings)
        parts = sorted(out.with_name(f"{out.name}.parts").glob("part-*.arrow"))
        damaged = parts[number :: 2 + number]
        for path in damaged:
            content = bytearray(path.read_bytes())
            content[len(content) * (number + 1) // 6] ^= 1 << number
            path.write_bytes(content[: 100 if number == 3 else None])
        summary = run(embedder, corpus, out, "resume", **settings)
        assert summary.remade == tuple(path.name for path in damaged)
        assert damaged
        assert_same_output(out, whole)


FULL = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import thalweg
from thalweg.corpus import Settings, discover, embed_files
model, docs, folder = sys.argv[1:]
embedder = thalweg.load(model, device="cpu")
told = []
for name in ("nothing", "parts", "output"):
    steps = [0]
    def follow(status):
        steps[0] += 1
        if status.writing if name == "output" else name == "parts" and steps[0] == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    limit = 100 if name == "nothing" else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    save_every = 0 if name == "parts" else 9
    settings = Settings(section_size=64, save_every=save_every, schedule={"max_tokens_per_step": 512})
    try:
        embed_files(embedder, discover([docs]).files, Path(folder) / f"{name}.jsonl", settings, on_status=follow)
    except thalweg.CorpusError as error:
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.mark.subprocess
@pytest.mark.skipif(os.name == "nt", reason="limits")
def test_a_disk_without_room_is_named_and_costs_nothing_that_was_saved(
    corpus: Path, embedder: thalweg.Embedder, model_folder: Path, tmp_path: Path
) -> None:
    """A limit on the size of files ends a write halfway, as a full disk does: at once, in the middle, at the end."""
    arguments = [str(each) for each in (model_folder, corpus, tmp_path)]
    done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nothing, parts, output = json.loads(done.stdout)
    assert nothing.startswith(f"{tmp_path / 'nothing.jsonl'}.parts/")
    assert nothing.endswith(": File too large; nothing was saved yet: make room, then start again")
    saved = r": File too large; [1-9]\d* vectors are saved in .*: make room, then go on with --resume"
    assert re.fullmatch(rf"{tmp_path}/parts\.jsonl\.parts/part-\d+-\w+\.arrow{saved}", parts)
    assert re.fullmatch(rf"{tmp_path}/output\.jsonl{saved}", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.jsonl.parts", "parts.jsonl.parts"]
    assert not list(tmp_path.rglob("*.tmp")), "what was half written takes no room"
    run(embedder, corpus, tmp_path / "whole.jsonl", section_size=64)
    for name in ("parts", "output"):
        run(embedder, corpus, tmp_path / f"{name}.jsonl", "resume", section_size=64)
        assert_same_output(tmp_path / f"{name}.jsonl", tmp_path / "whole.jsonl")
