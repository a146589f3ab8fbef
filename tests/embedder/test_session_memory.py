"""Sessions within a number of bytes, the others on disk: nobody notices, whatever fails there."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import stat
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text
from tests.embedder.session_models import assert_same, load, write_model
from thalweg import InvalidInputError
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.sessions.session import Session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("memory") / "model")


@pytest.fixture
def model(folder: Path) -> Embedder:
    return thalweg.load(folder, device="cpu", dtype="float32")


def begun(model: Embedder, n: int, words: int = 60) -> tuple[list[Session], list[str]]:
    texts = [make_text(words, seed=i) for i in range(n)]
    sessions = [model.session() for _ in texts]
    model.append_many(zip(sessions, texts, strict=True))
    return sessions, texts


def on_disk(sessions: list[Session]) -> list[bool]:
    return [not session.place.in_memory for session in sessions]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def states_in_memory(sessions: list[Session]) -> int:
    """Bytes of different tensors that the points of sessions hold."""
    points = [session.place.point for session in sessions if session.place.in_memory]
    tensors = {t.data_ptr(): t.nbytes for p in points if p.state for layer in p.state.model for t in layer}
    return sum(tensors.values()) + sum(p.state.sums.total.nbytes for p in points if p.state)


def test_those_used_last_stay(model: Embedder, tmp_path: Path) -> None:
    sessions, texts = begun(model, 6)
    for number, session in enumerate(sessions):
        session.append(f" {number}")
        texts[number] += f" {number}"
    one = model.plan_memory().state
    model.limit_sessions(3 * one, tmp_path)
    assert on_disk(sessions) == [True] * 3 + [False] * 3
    sessions[3].vector()
    assert_same(sessions[0].vector(), model.encode(texts[0]))
    assert on_disk(sessions) == [False, True, True, False, True, False]
    model.limit_sessions(None)
    assert_same(model.session_vectors(sessions), model.encode(texts))
    assert on_disk(sessions) == [False] * 6
    assert files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("states", [0, 1, 2.5, 7])
def test_many_stay_inside_the_limit(states: float, model: Embedder, tmp_path: Path) -> None:
    limit = int(states * model.plan_memory().state)
    model.limit_sessions(limit, tmp_path)
    sessions, texts = begun(model, 40)
    rng = random.Random(states)
    for _ in range(60):
        i = rng.randrange(40)
        what = rng.choice(["append", "vector", "fork", "drop", "many"])
        if what == "append":
            sessions[i].append(" more")
            texts[i] += " more"
        elif what == "vector":
            assert_same(sessions[i].vector(), model.encode(texts[i]))
        elif what == "fork":
            sessions.append(sessions[i].fork())
            texts.append(texts[i])
        elif what == "drop":
            sessions[i] = sessions[i].fork()
        else:
            model.append_many([(session, "!") for session in sessions[:20]])
            texts[:20] = [f"{text}!" for text in texts[:20]]
        assert states_in_memory(sessions) <= limit
        assert model._session_memory.nbytes <= limit
        assert len(files(tmp_path)) == sum(on_disk(sessions))
    assert_same(model.session_vectors(sessions), model.encode(texts))
    del sessions
    gc.collect()
    assert files(tmp_path) == []
    model.session()
    assert model._session_memory.nbytes == 0


def test_a_call_holds_one_state_of_each_session(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state before a text goes when the one after it comes."""
    sessions, _ = begun(model, 50)
    old = [weakref.ref(session.place.point.state.model[0][0]) for session in sessions if session.place.point.state]
    alive = []
    run = model.run_sources

    def watched(sources: Any) -> Iterator[Any]:
        for result in run(sources):
            alive.append(sum(reference() is not None for reference in old))
            yield result

    monkeypatch.setattr(model, "run_sources", watched)
    monkeypatch.setattr(model, "schedule", lambda: thalweg.Schedule(max_in_flight=2, max_tokens_per_step=64))
    model.append_many([(session, make_text(20)) for session in sessions])
    assert alive[-1] <= 8
    assert sum(reference() is not None for reference in old) == 0


def test_wrong_limits(model: Embedder, tmp_path: Path) -> None:
    for bad in (-1, 1.5, "1", True):
        with pytest.raises(InvalidInputError, match="max_bytes must be"):
            model.limit_sessions(bad)  # type: ignore[arg-type]
    for folder in (tmp_path / "none", 3):
        with pytest.raises(InvalidInputError, match="folder must be one that exists"):
            model.limit_sessions(1, folder)  # type: ignore[arg-type]


def test_only_this_user_reads_them_and_they_go_with_the_model(model: Embedder) -> None:
    sessions, _ = begun(model, 2)
    model.limit_sessions(0)
    folder = model._session_memory._folder
    assert folder is not None
    assert len(files(folder)) == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    gc.disable()
    try:
        reference = weakref.ref(model.model)
        del model
        assert reference() is not None  # its sessions need it
        del sessions
    finally:
        gc.enable()


def test_a_model_goes_with_its_last_session(folder: Path) -> None:
    """At once, without the garbage collector."""
    model = thalweg.load(folder, device="cpu", dtype="float32")
    gc.collect()
    gc.disable()
    try:
        session = model.session()
        session.append(make_text(50))
        model.limit_sessions(0)
        session.vector()
        reference, place = weakref.ref(model.model), model._session_memory._folder
        assert place is not None
        del model
        session.append("and on")
        assert reference() is not None
        del session
        assert reference() is None
        assert not place.exists()
    finally:
        gc.enable()


# -- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """Every file that is written ends with "No space left on device", half of it written."""
    write_bytes, open_ = Path.write_bytes, open

    def failing(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = open_(file, mode, *args, **options)
        return Full(opened) if mode == "wb" else opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", failing)
        patch.setattr("thalweg.storage.durable.open", opening, raising=False)
        yield


def test_a_full_disk(model: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What needs more room than there is is refused before it is done; all else goes on, and later all of it does."""
    one = model.plan_memory().state
    model.limit_sessions(2 * one, tmp_path)
    sessions, texts = begun(model, 4)
    idle, live = sessions[:2], sessions[2:]
    assert on_disk(sessions) == [True, True, False, False]
    new = model.session()
    with full_disk():
        for call in (lambda: idle[0].append("x"), idle[0].vector, lambda: idle[1].tokens, lambda: new.append("x" * 99)):
            with pytest.raises(OSError, match="No space left on device") as caught:
                call()
            assert caplog.text == ""
            assert str(tmp_path) in str(caught.value)
            assert model._session_memory.nbytes <= 2 * one
        with pytest.raises(OSError, match="No space left"):
            model.append_many([(session, " y") for session in sessions])  # those in memory go on
        live[0].append(" there is room for this")  # it takes no more than it had
        with pytest.raises(OSError, match="No space left"):
            live[0].fork()
        assert len(files(tmp_path)) == 2  # no halves
        with caplog.at_level(logging.WARNING, "thalweg"), pytest.raises(OSError, match="No space left"):
            model.limit_sessions(one, tmp_path)
    texts[2] += " y there is room for this"
    texts[3] += " y"
    assert_same(model.session_vectors(sessions), model.encode(texts))
    new.append("x")
    assert_same(new.vector(), model.encode("x"))


def test_what_was_read_stays_if_the_disk_is_full_afterwards(
    model: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit below one state: after the text has been read it cannot fail any more."""
    session = model.session()
    session.append(make_text(50))
    with full_disk():
        with pytest.raises(OSError, match="No space left"):
            model.limit_sessions(0, tmp_path)
        with caplog.at_level(logging.WARNING, "thalweg"):
            session.append(" and on")
    assert "idle ones cannot be written to disk" in caplog.text
    assert "No space left on device" in caplog.text
    assert_same(session.vector(), model.encode(make_text(50) + " and on"))
    assert on_disk([session]) == [True]


def test_a_full_disk_leaves_a_saved_session_as_it_was(model: Embedder, tmp_path: Path) -> None:
    session = model.session()
    session.append("one")
    path = session.save(tmp_path / "session")
    before = path.read_bytes()
    session.append(" two")
    with full_disk(), pytest.raises(OSError, match="No space left on device"):
        session.save(path)
    assert path.read_bytes() == before
    assert files(tmp_path) == [path]
    with pytest.raises(FileNotFoundError):
        session.save(tmp_path / "no folder" / "session")


@pytest.mark.parametrize("how", ["deleted", "damaged", "cut", "replaced by another"])
def test_somebody_meddles_with_an_idle_session(how: str, model: Embedder, tmp_path: Path) -> None:
    sessions, texts = begun(model, 3)
    model.limit_sessions(0, tmp_path)
    path = sessions[1].place._file.path  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    error: type[Exception] = InvalidInputError
    if how == "deleted":
        path.unlink()
        error = FileNotFoundError
    elif how == "damaged":
        data[-20] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:100])
    else:
        path.write_bytes((load(tmp_path / "m", "mamba").folder / "model.safetensors").read_bytes())
    for call in (sessions[1].vector, sessions[1].fork, lambda: sessions[1].append("x"), lambda: sessions[1].tokens):
        with pytest.raises(error, match=path.name):
            call()
    others = [sessions[0], sessions[2]]
    model.limit_sessions(5 * model.plan_memory().state, tmp_path)
    with pytest.raises(error, match=path.name):
        model.append_many((session, " more") for session in sessions)
    assert_same(model.session_vectors(others), model.encode([f"{texts[0]} more", f"{texts[2]} more"]))
    assert model._session_memory.nbytes == 2 * model.plan_memory().state


def test_a_folder_that_is_swept_away(model: Embedder, tmp_path: Path) -> None:
    """As those for temporary files are: the sessions in it are lost, later ones are not."""
    sessions, texts = begun(model, 2)
    model.limit_sessions(0, tmp_path)
    sessions[1].vector()
    (swept,) = tmp_path.iterdir()
    for path in swept.iterdir():
        path.unlink()
    swept.rmdir()
    with pytest.raises(FileNotFoundError, match="an idle session cannot be read from disk"):
        sessions[0].vector()
    later = model.session()
    later.append(texts[0])
    assert_same(later.vector(), model.encode(texts[0]))


# -- threads and processes --------------------------------------------------------------------------------------------


def test_threads(model: Embedder) -> None:
    """Shared and forked sessions, a small limit, and other calls: no two wait for each other."""
    model.limit_sessions(3 * model.plan_memory().state)
    shared, texts = begun(model, 6, words=20)
    counts = [0] * 6
    lock = threading.Lock()

    def work(number: int) -> None:
        rng = random.Random(number)
        mine, text = model.session(), ""
        for _ in range(25):
            what = rng.choice(["own", "shared", "fork", "encode", "many", "vectors"])
            if what == "own":
                mine.append(f" {number} river")
                text += f" {number} river"
                assert_same(mine.vector(), model.encode(text))
            elif what == "shared":
                i = rng.randrange(6)
                shared[i].append(" again")
                with lock:
                    counts[i] += 1
            elif what == "fork":
                fork = mine.fork()
                fork.append(" and on")
                assert_same(fork.vector(), model.encode(f"{text} and on"))
            elif what == "encode":
                few = [make_text(rng.randrange(60)) for _ in range(3)]
                assert model.encode(few).shape == (3, 24)
            elif what == "many":
                order = rng.sample(range(6), 4)
                model.append_many([(shared[i], " again") for i in order])
                with lock:
                    for i in order:
                        counts[i] += 1
            else:
                model.session_vectors(rng.sample(shared, 4))

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(work, number) for number in range(8)]:
            result.result(timeout=120)
    wanted = [text + " again" * count for text, count in zip(texts, counts, strict=True)]
    assert_same(model.session_vectors(shared), model.encode(wanted))
    assert model._session_memory.nbytes <= 3 * model.plan_memory().state


def test_threads_save_to_one_path(model: Embedder, tmp_path: Path) -> None:
    """The last one wins; a whole session is there all the time."""
    sessions, texts = begun(model, 4)
    wanted = model.encode(texts)
    path = tmp_path / "session"

    def work(session: Session) -> None:
        for _ in range(20):
            session.save(path)
            assert np.abs(model.restore(path).vector() - wanted).max(axis=1).min() <= 1e-5

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, sessions))
    assert files(tmp_path) == [path]


def test_two_threads_begin_at_once(folder: Path) -> None:
    for _ in range(5):
        model = thalweg.load(folder, device="cpu")
        with ThreadPoolExecutor(4) as pool:
            sessions = list(pool.map(lambda _, model=model: model.session(), range(8)))
        model.append_many((session, "a") for session in sessions)


PROGRAM = """
import os, sys, threading, warnings
import torch, thalweg
warnings.simplefilter("ignore")  # Python's own, that a process with threads forks
model = thalweg.load(sys.argv[1], device="cpu")
text = "the river runs down to the sea " * 30
sessions = [model.session() for _ in range(6)]
model.append_many((session, text) for session in sessions)
model.limit_sessions(2 * model.plan_memory().state)
want, more = model.encode([text, text + "and on"])
stop = threading.Event()
busy = model.session()
def work():
    while not stop.is_set():
        busy.append("and so on ")
        busy.fork().vector()
thread = threading.Thread(target=work)
thread.start()
for number in range(5):
    child = os.fork()
    if child == 0:
        good = True
        for session in sessions:
            good = good and abs(session.vector() - want).max() <= 1e-5
            session.append("and on")
            good = good and abs(session.vector() - more).max() <= 1e-5
        fork = sessions[0].fork()
        good = good and fork.tokens == sessions[0].tokens and busy.fork().tokens > 0
        del sessions[:], fork
        if number % 2:
            sys.exit(0 if good else 1)  # with all that is done at the end of a process
        os._exit(0 if good else 1)
    print(os.waitpid(child, 0)[1], flush=True)
stop.set()
thread.join()
print(int(max(abs(session.vector() - want).max() for session in sessions) > 1e-5))
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_forked_processes(folder: Path, tmp_path: Path) -> None:
    """They use what their parent had in memory and on disk, and leave its files alone."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stdout.split() == ["0"] * 6, done.stderr
    left = [path for path in tmp_path.iterdir() if path.name.startswith("thalweg")]
    assert len(left) <= 3  # of the children that ended by os._exit


@pytest.mark.subprocess
@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise KeyError"])
def test_nothing_is_left_on_disk(end: str, folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys, thalweg
model = thalweg.load(sys.argv[1], device="cpu")
kept = [model.session() for _ in range(4)]
model.limit_sessions(0, sys.argv[2])
model.append_many((session, "the river runs down to the sea " * 9) for session in kept)
assert sum(1 for _ in __import__("pathlib").Path(sys.argv[2]).rglob("*.safetensors")) == 4
{end}
"""
    subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path)], timeout=120, check=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.subprocess
@pytest.mark.kill
def test_what_a_killed_process_left_is_removed_by_the_next(model: Embedder, folder: Path, tmp_path: Path) -> None:
    """And nothing that belongs to a process that is alive, or to nobody knows whom."""
    program = """
import sys, thalweg
model = thalweg.load(sys.argv[1], device="cpu")
kept = [model.session() for _ in range(2)]
model.limit_sessions(0, sys.argv[2])
model.append_many((session, "the river runs down to the sea ") for session in kept)
print("there", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(folder), str(tmp_path)]
    (tmp_path / "thalweg-sessions-of-an-earlier-version").mkdir()
    (tmp_path / "thalweg-sessions-link").symlink_to(folder)
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as alive,
    ):
        for process in (killed, alive):
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
        assert len(list(tmp_path.iterdir())) == 4
        killed.kill()
        killed.wait()
        try:
            model.limit_sessions(0, tmp_path)
            session = model.session()
            session.append("the river runs down to the sea ")
            left = {each.name: len(files(each)) for each in tmp_path.iterdir() if not each.is_symlink()}
            assert left.pop("thalweg-sessions-of-an-earlier-version") == 0
            assert sorted(left.values()) == [1, 2]
            assert (tmp_path / "thalweg-sessions-link" / "config.json").exists()
        finally:
            model.limit_sessions(None)
            alive.kill()
