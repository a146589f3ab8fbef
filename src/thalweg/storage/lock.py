"""One process at a time in a folder: a lock file that the system releases when its process dies.

The file holds the number of the process, for messages. It is removed while it is still locked, so whoever opened it in
the meantime holds a lock on nothing; that is why a new lock is compared with what lies at its path.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

from thalweg.errors import CorpusError

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
"""The lock file of a folder."""

_PATIENCE = 0.25
"""Seconds to wait for a process that is only looking (`holder`) or just leaving."""


class Lock(AbstractContextManager["Lock"]):
    """A folder that this process holds, see `hold`."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n".encode())
        stream.flush()

    @property
    def in_place(self) -> bool:
        """Whether the folder still has the name by which it is held."""
        return not self._stream.closed and _lies_at(self._stream, self._path)

    def release(self, *, drop_empty_folder: bool = False) -> None:
        """Let other processes have the folder."""
        if self._stream.closed:
            return
        if fcntl is None:
            self._stream.close()  # Windows removes no file that is open
        with suppress(OSError):
            if fcntl is None or self.in_place:  # the folder may have been renamed, and another have its name
                self._path.unlink()
        if drop_empty_folder:
            with suppress(OSError):  # something is in it, perhaps the lock of the next process
                self._path.parent.rmdir()
        self._stream.close()

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(folder: Path) -> Lock:
    """Make a folder, unless it is there, and hold it.

    Raises:
        CorpusError: another process holds it, which is named; or its file system knows no locks.
    """
    path = folder / LOCK
    give_up = time.monotonic() + _PATIENCE
    while True:
        late = time.monotonic() > give_up
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = open(path, "ab+")  # noqa: SIM115
        except (FileExistsError, FileNotFoundError):
            if late:
                raise
            continue  # the folder was dropped in this moment
        try:
            locked = _try(stream, folder, shared=False)
            if locked and _lies_at(stream, path):
                return Lock(path, stream)
            if not locked and late:
                raise _held(folder, _named(stream))
        except BaseException:
            stream.close()
            raise
        stream.close()
        time.sleep(0.01)


def holder(folder: Path) -> str | None:
    """Which process holds a folder now, in words; None if none does."""
    try:
        stream = open(folder / LOCK, "rb")  # noqa: SIM115
    except OSError:
        return None
    with stream:
        return None if _try(stream, folder, shared=True) else _named(stream)


def is_abandoned(folder: Path) -> bool:
    """Whether a process of this user has held a folder and died. False where that cannot be told."""
    if fcntl is None:
        return False
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        with open(folder / LOCK, "rb") as stream:
            # The number is written once the lock is held: without it somebody may be about to take it.
            return _try(stream, folder, shared=True) and stream.read(20).strip().isdigit()
    except (OSError, CorpusError):
        return False


def check_not_held(folder: Path) -> None:
    """Raises:
    CorpusError: another process holds the folder now, which is named.
    """
    if (who := holder(folder)) is not None:
        raise _held(folder, who)


def _held(folder: Path, who: str) -> CorpusError:
    return CorpusError(f"another run is writing to {folder} now ({who}); wait for it to end, or end it")


def _try(stream: IO[bytes], folder: Path, *, shared: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CorpusError(
            f"{folder} cannot be locked ({error.strerror}); write to a file system that has locks"
        ) from error
    return True


def _lies_at(stream: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _named(stream: IO[bytes]) -> str:
    stream.seek(0)
    number = stream.read(20).strip()
    return f"process {int(number)}" if number.isdigit() else "another process"
