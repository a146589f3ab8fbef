"""Files that say in their name what they must hold: NAME-CRC32.SUFFIX, the checksum as 8 hexadecimal digits.

A file appears whole or not at all, so a checksum that does not fit means that the disk or somebody changed it since.
"""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path

from thalweg.storage.durable import write_durably

_NAME = re.compile(r"(.+)-([0-9a-f]{8})(\.\w+)")
_PIECE = 1 << 20


def write_checked(path: Path, data: bytes | memoryview) -> Path:
    """Write `NAME.SUFFIX` durably; where it is now."""
    target = path.with_name(f"{path.stem}-{zlib.crc32(data):08x}{path.suffix}")
    write_durably(target, lambda stream: stream.write(data))
    return target


def find_checked(path: Path) -> list[Path]:
    """What there is under the name `NAME.SUFFIX`, whole or not."""
    paths = path.parent.glob(f"{path.stem}-*{path.suffix}")
    return sorted(each for each in paths if (match := _NAME.fullmatch(each.name)) and match[1] == path.stem)


def is_whole(path: Path) -> bool:
    """Whether a file still holds what it was written with."""
    match = _NAME.fullmatch(path.name)
    return match is not None and checksum(path) == int(match[2], 16)


def checksum(path: Path) -> int:
    """CRC-32 of a file, read piece by piece."""
    value = 0
    with open(path, "rb") as stream:
        while data := stream.read(_PIECE):
            value = zlib.crc32(data, value)
    return value


def mapped(path: Path) -> mmap.mmap:
    """A file as memory, read as it is looked at."""
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
