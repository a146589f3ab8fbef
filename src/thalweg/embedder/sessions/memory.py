"""Sessions in memory and on disk: those that were used last stay in memory, within a number of bytes.

Room is made before anything is done that needs it. So a disk that is full refuses work that would take more memory than
allowed, and never leaves work half done: what has been read stays, over the limit if nothing else is possible.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from thalweg.checks import whole_number
from thalweg.embedder.sessions.point import Point
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.storage.durable import in_words
from thalweg.storage.lock import Lock, hold, is_abandoned
from thalweg.system.forked import reset_when_forked
from thalweg.tokenization.tokenizer import Tokenizer

log = logging.getLogger("thalweg")

PREFIX = "thalweg-sessions-"
"""What the names of folders for idle sessions begin with."""

_numbers = itertools.count()


class Files(Protocol):
    """A point to a file and back, for its tokenizer."""

    def spill(self, path: Path, point: Point) -> None: ...
    def read_back(self, path: Path, tokenizer: Tokenizer) -> Point: ...


class SessionMemory:
    """Which sessions of a model are in memory.

    Attributes:
        max_bytes: of the states in memory; None for any number. nbytes: of those that are, each counted once for every
            session that has it.
    """

    def __init__(self, max_bytes: int | None = None, folder: Path | None = None) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._parent = folder  # of the folder for idle sessions
        self._folder: Path | None = None
        self._lock = threading.Lock()
        # Those used longest ago first: the place, which may be gone, and the bytes that are counted of it.
        self._in_memory: OrderedDict[int, tuple[weakref.ref[Place], int]] = OrderedDict()
        self._gone: deque[int] = (
            deque()
        )  # numbers of places that are gone; the garbage collector may not wait for locks
        reset_when_forked(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return SessionMemory, (self.max_bytes, self._parent)

    def reset(self) -> None:
        """In a forked process: begin with a lock that nobody holds and a folder of its own."""
        self._lock = threading.Lock()
        self._folder = None
        self.nbytes = sum(n_bytes for _, n_bytes in self._in_memory.values())

    def limit(self, max_bytes: int | None, folder: str | Path | None = None) -> None:
        """See `Embedder.limit_sessions`."""
        if max_bytes is not None:
            max_bytes = whole_number("max_bytes", max_bytes, least=0)
        if folder is not None and not (isinstance(folder, str | Path) and Path(folder).is_dir()):
            raise InvalidInputError(f"folder must be one that exists, got {str(folder)!r}")
        with self._lock:
            self.max_bytes = max_bytes
            self._parent = None if folder is None else Path(folder)
            self._folder = None
        self.make_room()

    def count(self, place: Place, n_bytes: int | None) -> int | None:
        """The place was used last, and counts with so many bytes; None: it is not in memory. Returns what it was."""
        with self._lock:
            self._forget_gone()
            _, before = self._in_memory.pop(place.number, (None, None))
            self.nbytes += (n_bytes or 0) - (before or 0)
            if n_bytes is not None:
                gone, number = self._gone, place.number
                self._in_memory[number] = (weakref.ref(place, lambda _: gone.append(number)), n_bytes)
            return before

    def make_room(self) -> None:
        """Write those to disk that were used longest ago, but for open ones, until the others fit.

        Raises:
            OSError: one cannot be written.
        """
        open_ones: set[int] = set()
        while True:
            with self._lock:
                self._forget_gone()
                if self.max_bytes is None or self.nbytes <= self.max_bytes:
                    return
                place = self._oldest(open_ones)
            if place is None:
                return
            if not place.spill():
                open_ones.add(place.number)

    def settle(self) -> None:
        """As `make_room`, after work that is done and must not fail any more."""
        try:
            self.make_room()
        except OSError as error:
            log.warning(
                "sessions take %s bytes of memory, more than the %s allowed: idle ones cannot be written to disk (%s)",
                self.nbytes,
                self.max_bytes,
                in_words(error),
            )

    def spill_path(self) -> Path:
        """A new name in the folder for idle sessions."""
        with self._lock:
            if self._folder is None or not self._folder.is_dir():
                self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
                _sweep(self._folder.parent)
                lock = None
                with contextlib.suppress(CorpusError):  # a file system without locks: nobody will sweep there
                    lock = hold(self._folder)
                weakref.finalize(self, _remove_folder, self._folder, lock, os.getpid())
            return self._folder / f"{uuid.uuid4().hex}.safetensors"

    def _oldest(self, but: set[int]) -> Place | None:
        for number, (reference, _) in self._in_memory.items():
            place = None if number in but else reference()
            if place is not None:
                return place
        return None

    def _forget_gone(self) -> None:
        while self._gone:
            _, n_bytes = self._in_memory.pop(self._gone.popleft(), (None, 0))
            self.nbytes -= n_bytes


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        if is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_folder(folder: Path, lock: Lock | None, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


class Place:
    """Where the point of one session is: in memory, or in a file of which nobody else knows.

    Attributes:
        number: of no other place; nbytes: of its state, in memory or on disk; n_run: tokens that it has seen.

    Raises:
        OSError: there is no room for it, and another one cannot be written to disk.
    """

    def __init__(self, memory: SessionMemory, files: Files, point: Point, tokenizer: Tokenizer) -> None:
        self.number = next(_numbers)
        self._memory = memory
        self._files = files
        self._tokenizer = tokenizer
        self._point: Point | None = None
        self._file: _File | None = None
        self._put(point)
        self.reset()
        memory.count(self, self.nbytes)
        try:
            memory.make_room()  # it may go to disk itself
        except BaseException:
            memory.count(self, None)
            raise

    def reset(self) -> None:
        """Begin with a lock that nobody holds, used by nobody."""
        self._guard = threading.Lock()
        self._users = 0

    @property
    def in_memory(self) -> bool:
        """Whether it is not on disk."""
        return self._point is not None

    @property
    def point(self) -> Point:
        """Where the text stands. The place is open."""
        assert self._point is not None
        return self._point

    @contextmanager
    def opened(self, room: int = 0) -> Iterator[None]:
        """Have the point stay in memory meanwhile.

        Args:
            room: bytes that it may need, if that is more than it has.

        Raises:
            OSError: it cannot be read from disk, or there is no room for it, as another one cannot be written.
            InvalidInputError: what is on disk is damaged.
        """
        with self._guard:
            if self._point is None or room > self.nbytes:
                self._make_room(max(room, self.nbytes))
            else:
                self._memory.count(self, self.nbytes)
            self._users += 1
        try:
            yield
        finally:
            with self._guard:
                self._users -= 1
                self._memory.count(self, self.nbytes)
            self._memory.settle()

    def set(self, point: Point) -> None:
        """The text has gone on. The place is open."""
        self._put(point)

    def spill(self) -> bool:
        """Write the point to disk, unless it is in use; whether it is there now.

        Raises:
            OSError: it cannot be written, and stays in memory.
        """
        if not self._guard.acquire(blocking=False):
            return False
        try:
            if self._users:
                return False
            if self._point is not None:
                path = self._memory.spill_path()
                self._files.spill(path, self._point)
                self._point, self._file = None, _File(path)
            self._memory.count(self, None)
            return True
        finally:
            self._guard.release()

    def _put(self, point: Point) -> None:
        self._point = point
        self.nbytes, self.n_run = point.nbytes, point.n_run

    def _make_room(self, n_bytes: int) -> None:
        """Have room for so many bytes, and the point in memory."""
        was = self._memory.count(self, n_bytes)
        try:
            self._memory.make_room()
            if self._file is not None:
                self._point = self._files.read_back(self._file.path, self._tokenizer)
                self._file.remove()
                self._file = None
        except BaseException:
            self._memory.count(self, was)
            raise


class _File:
    """A file that goes with this object, in the process that wrote it: forked ones have the object too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remove = weakref.finalize(self, _remove_file, path, os.getpid())
        self.remove.atexit = False  # its folder is removed then


def _remove_file(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(OSError):  # its folder is removed at the latest when the process ends
            path.unlink()
