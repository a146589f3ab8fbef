"""Only one process holds a folder, whatever the others do at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thalweg.errors import CorpusError
from thalweg.storage.lock import LOCK, Lock, hold, holder
from thalweg.storage.work_folder import WorkFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks")


def test_the_holder_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert holder(folder) is None
    with hold(folder):
        assert holder(folder) == f"process {os.getpid()}"
        with pytest.raises(CorpusError, match=rf"another run is writing to .*b now \(process {os.getpid()}\); wait"):
            hold(folder)
    assert holder(folder) is None
    assert not list(folder.iterdir())


@pytest.mark.subprocess
def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    program = "import os; from pathlib import Path; from thalweg.storage.lock import hold; "
    program += f"lock = hold(Path({str(tmp_path)!r})); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert (tmp_path / LOCK).exists()
    assert holder(tmp_path) is None
    with hold(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_lock_that_was_opened_before_it_was_removed_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiter opens the file, the holder removes it and leaves, a third one comes: then the waiter has its lock."""
    first = hold(tmp_path)
    others: list[Lock] = []

    def opened(*arguments: object, **options: object) -> object:
        stream = open(*arguments, **options)  # type: ignore[call-overload]  # noqa: SIM115
        monkeypatch.undo()
        first.release()
        others.append(hold(tmp_path))
        return stream

    monkeypatch.setattr("thalweg.storage.lock.open", opened, raising=False)
    with pytest.raises(CorpusError, match="another run is writing"):
        hold(tmp_path)
    others[0].release()
    hold(tmp_path).release()


def test_many_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    """Folders are dropped and made again while others wait for them."""
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(30):
            while True:
                try:
                    folder = WorkFolder(tmp_path / "x.parts", ("part-*",))
                    break
                except CorpusError:
                    continue
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            entered[0] += 1
            folder.begin({"a": 1})
            (folder.path / "part-1").write_text("x")
            inside[0] -= 1
            folder.drop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], entered[0]) == (1, 120)
    assert not list(tmp_path.iterdir())


def test_a_renamed_folder_takes_its_lock_along(tmp_path: Path) -> None:
    lock = hold(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert not lock.in_place
    with hold(tmp_path / "a"):
        lock.release()
        assert (tmp_path / "a" / LOCK).exists(), "the lock of another process is left alone"


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("thalweg.storage.lock.fcntl.flock", flock)
    with pytest.raises(CorpusError, match="cannot be locked"):
        hold(tmp_path)
