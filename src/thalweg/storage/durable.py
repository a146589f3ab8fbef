"""Files that are there whole or not at all, also after a crash: written beside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that then takes the place of `path` at once."""
    fresh = path.with_name(f"{path.name}.tmp")
    with open(fresh, "wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    move_durably(fresh, path)


def move_durably(source: Path, target: Path) -> None:
    """Rename a synced file; the rename survives a crash too."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Have the file's bytes on the disk."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have the folder's entries on the disk, where the system lets folders be opened (Windows does not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: Path) -> IO[bytes]:
    """A lock file, held until it is closed; the system lets go of it if the process dies.

    Raises:
        OSError: another process holds it.
    """
    stream = open(path, "ab")  # noqa: SIM115
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are not noticed there
        return stream
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise
    return stream
