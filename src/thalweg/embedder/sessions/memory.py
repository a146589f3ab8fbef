"""Sessions in memory and on disk: those that were used last stay in memory, within a number of bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from thalweg.checks import whole_number
from thalweg.embedder.sessions.point import Point
from thalweg.errors import InvalidInputError
from thalweg.system.forked import reset_when_forked
from thalweg.tokenization.tokenizer import Tokenizer


class SessionMemory:
    """Where all sessions of a model are.

    Args:
        write, read: a point to a file and back, for its tokenizer.

    Attributes:
        nbytes: of the states in memory, each counted once for every session that has it.
    """

    def __init__(self, write: Callable[[Path, Point], object], read: Callable[[Path, Tokenizer], Point]) -> None:
        self.write, self.read = write, read
        self.max_bytes: int | None = None
        self._folder: Path | None = None
        self._lock = threading.Lock()
        self._in_memory: OrderedDict[int, weakref.ref[Place]] = OrderedDict()  # those used longest ago first
        self._dropped: deque[tuple[int, int]] = deque()  # of places that are gone: their key, and the bytes they had
        self.nbytes = 0
        reset_when_forked(self)

    def reset(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.Lock()

    def limit(self, max_bytes: int | None, folder: str | Path | None = None) -> None:
        """See `Embedder.limit_sessions`."""
        if max_bytes is not None:
            whole_number("max_bytes", max_bytes, least=0)
        if folder is not None and not Path(folder).is_dir():
            raise InvalidInputError(f"folder must be one that exists, got {str(folder)!r}")
        self.max_bytes = max_bytes
        self._folder = None if folder is None else Path(folder)
        self.settle()

    def count(self, place: Place) -> None:
        """The place was used last, and has so many bytes in memory as it says."""
        with self._lock:
            self._forget_dropped()
            if place.in_memory:
                self._in_memory[id(place)] = weakref.ref(place)
                self._in_memory.move_to_end(id(place))
            else:
                self._in_memory.pop(id(place), None)
            n_bytes = place.nbytes if place.in_memory else 0
            self.nbytes += n_bytes - place.counted
            place.counted = n_bytes

    def settle(self) -> None:
        """Write those to disk that were used longest ago, but for open ones, until the others fit."""
        if self.max_bytes is None:
            return
        with self._lock:
            self._forget_dropped()
            references = list(self._in_memory.values())
        for reference in references:
            if self.nbytes <= self.max_bytes:
                return
            place = reference()
            if place is not None:
                place.spill()

    def drop(self, place: Place) -> None:
        """A place is gone. May be called at any moment, by the garbage collector."""
        self._dropped.append((id(place), place.counted))

    def spill_path(self) -> Path:
        """A new name in the folder for idle sessions."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="thalweg-sessions-"))
            weakref.finalize(self, _remove_folder, self._folder, os.getpid())
        return self._folder / f"session-{uuid.uuid4().hex}.safetensors"

    def _forget_dropped(self) -> None:
        while self._dropped:
            key, n_bytes = self._dropped.popleft()
            self.nbytes -= n_bytes
            reference = self._in_memory.get(key)
            if reference is not None and reference() is None:
                del self._in_memory[key]


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


class Place:
    """Where the point of one session is: in memory, or in a file of which nobody else knows."""

    def __init__(self, memory: SessionMemory, point: Point, tokenizer: Tokenizer) -> None:
        self._memory = memory
        self._tokenizer = tokenizer
        self._point: Point | None = point
        self._path: Path | None = None
        self._owner = os.getpid()  # of the file: a forked process leaves it to the one that it was forked from
        self._users = 0
        self._guard = threading.Lock()
        self.nbytes = point.nbytes
        self.counted = 0  # bytes that the memory has of it
        memory.count(self)

    def __del__(self) -> None:
        self._memory.drop(self)
        self._remove_file()

    @property
    def in_memory(self) -> bool:
        """Whether it is not on disk."""
        return self._point is not None

    @contextmanager
    def opened(self) -> Iterator[Point]:
        """The point, which stays in memory meanwhile.

        Raises:
            OSError: it cannot be read from disk, or another one that has to go cannot be written.
            InvalidInputError: what is on disk is damaged.
        """
        with self._guard:
            if self._point is None:
                assert self._path is not None
                self._point = self._memory.read(self._path, self._tokenizer)
                self._remove_file()
            point = self._point
            self._users += 1
        try:
            self._memory.count(self)
            self._memory.settle()
            yield point
        finally:
            with self._guard:
                self._users -= 1

    def set(self, point: Point) -> None:
        """The text has gone on. The place is open; whoever opened it settles the memory."""
        self._point, self.nbytes = point, point.nbytes
        self._memory.count(self)

    def spill(self) -> None:
        """Write the point to disk, unless it is in use."""
        if not self._guard.acquire(blocking=False):
            return
        try:
            if self._users or self._point is None:
                return
            path = self._memory.spill_path()
            self._memory.write(path, self._point)
            self._point, self._path, self._owner = None, path, os.getpid()
            self._memory.count(self)
        finally:
            self._guard.release()

    def _remove_file(self) -> None:
        path, self._path = self._path, None
        if path is not None and self._owner == os.getpid():
            path.unlink(missing_ok=True)
