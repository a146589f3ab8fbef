"""A folder holds a run, or nothing: at whatever moment a crash comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thalweg.errors import CorpusError
from thalweg.storage import work_folder
from thalweg.storage.lock import LOCK, hold
from thalweg.storage.work_folder import MANIFEST, WorkFolder, has_begun, publish_folder

CONTENTS = ("part-*", "data", "*.tmp")


class Crash(BaseException):
    """Stands for the end of the process."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_is_begun_continued_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.parts"
    with WorkFolder(path, CONTENTS) as work:
        assert not work.begun
        work.begin({"seed": 1}, lambda: (path / "part-1").write_text("x"))
        (path / "data").mkdir()
        (path / "data" / "y").write_text("y")
    assert has_begun(path)
    assert LOCK not in names(path)
    work = WorkFolder(path, CONTENTS)
    assert (work.begun, work.manifest()) == (True, {"seed": 1})
    work.drop()
    assert not path.exists()


@pytest.mark.parametrize("steps", range(12))
def test_a_crash_while_a_run_is_begun_or_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """At any step of the file system: the folder holds the old run, the new one, or none, and may be used again."""
    path = tmp_path / "x"
    with WorkFolder(path, CONTENTS, telling=False) as work:
        work.begin({"run": "old"})
        for i in range(3):
            (path / f"part-{i}").write_text("old")
    left = [steps]

    def crashing(real: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("write_durably", "_remove", "sync_folder"):
            patch.setattr(work_folder, name, crashing(getattr(work_folder, name)))
        try:
            with WorkFolder(path, CONTENTS, telling=False) as work:
                work.begin({"run": "new"}, lambda: (path / "part-9").write_text("new"))
                work.drop()
        except Crash:
            pass
    if has_begun(path):
        run = json.loads((path / MANIFEST).read_text())["run"]
        parts = {file.read_text() for file in path.glob("part-*")}
        assert parts == {run}
    with WorkFolder(path, CONTENTS, telling=False) as work:
        work.begin({"run": "last"})
        assert names(path) == [LOCK, MANIFEST]


@pytest.mark.parametrize("telling", [True, False])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, telling: bool) -> None:
    (tmp_path / "part-1").write_text("x")
    work = WorkFolder(tmp_path, CONTENTS, telling=telling)
    if telling:
        work.begin({})
        assert not (tmp_path / "part-1").exists()
        (tmp_path / "thesis.docx").write_text("x")
    else:
        with pytest.raises(CorpusError, match="holds 'part-1', which is not thalweg's"):
            work.begin({})
        (tmp_path / "part-1").rename(tmp_path / "thesis.docx")
    work.drop()
    assert names(tmp_path) == ["thesis.docx"]
    with WorkFolder(tmp_path, CONTENTS) as work, pytest.raises(CorpusError, match=r"thesis\.docx"):
        work.begin({})
    assert names(tmp_path) == ["thesis.docx"]


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_is_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with WorkFolder(tmp_path, CONTENTS) as work, pytest.raises(CorpusError, match=r"manifest\.json is damaged"):
        work.manifest()


def test_a_finished_folder_takes_its_name_at_once(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.run"
    for generation in ("old", "new"):
        (work / "model").mkdir(parents=True)
        (work / "model" / "weights").write_text(generation)
        with hold(work):
            publish_folder(work / "model", out, work)
        assert (out / "weights").read_text() == generation
        assert names(tmp_path) == ["out"]
