"""Files that are there whole or not at all, also after a crash: written beside, synced, renamed."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from thalweg.errors import CorpusError


def write_durably(path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Have `write` fill a file that then takes the place of `path` at once; a link stays one, and what it leads to is
    written.

    Args:
        shared: others may write to the same path at the same time. What is written beside then has a name of its own,
            which stays behind where the process is killed.

    Raises:
        OSError: naming the file, which is as it was before.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp" if shared else f"{path.name}.tmp")
    with errors_named(path):
        try:
            with open(fresh, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            fresh.unlink(missing_ok=True)  # half a file helps nobody, least of all on a full disk
            raise
        move_durably(fresh, path)


def move_durably(source: Path, target: Path) -> None:
    """Rename a synced file; the rename survives a crash too."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Have the file's bytes on the disk."""
    with errors_named(path), open(path, "rb+") as stream:
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


def check_no_link(path: Path) -> None:
    """Raises:
    CorpusError: a link, which would be replaced by what is written, and beside which other files would be missed.
    """
    if path.is_symlink():
        raise CorpusError(f"{path} is a link to {os.readlink(path)!r}; name what it leads to, or remove it")


def check_utf8(path: Path) -> None:
    """Raises:
    CorpusError: a name that is no UTF-8, which libraries refuse that are to write there, at the end of all the work.
    """
    try:
        os.fspath(path.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise CorpusError(f"{shown}: a name that is not UTF-8 cannot be written to; choose another") from error


def in_words(error: OSError) -> str:
    """ "/data/x: No space left on device"."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def cure(error: OSError) -> str:
    """What to do about it."""
    return "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Have errors of the system name the file: "No space left on device" says nothing without it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
