"""Patterns of file names to names. Unlike in `glob`, `**` follows no links to folders, which may lead in circles."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatch


def expand(pattern: str) -> list[str]:
    """What a pattern matches, sorted, each once; hidden names only where the pattern begins with a dot."""
    if "**" not in pattern.replace(os.sep, "/").split("/"):
        return sorted(glob.glob(pattern))
    root, parts = _split(pattern.rstrip("/"))
    found = sorted(set(_below(root, parts)))
    return [path for path in found if os.path.isdir(path)] if pattern.endswith("/") else found


def _split(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first part that is a pattern, and the parts from there on."""
    parts = pattern.replace(os.sep, "/").split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return "/".join([*parts[:first], ""]), parts[first:]


def _below(folder: str, parts: list[str]) -> Iterator[str]:
    """Paths below a folder, "" or with a slash at its end, that match the parts."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        if rest:
            yield from _below(folder, rest)
        elif folder:
            yield folder
    for entry in _entries(folder or "."):
        path = folder + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if part == "**":
            if entry.name.startswith("."):
                continue
            if not rest:
                yield path
            if is_folder:
                yield from _below(f"{path}/", parts)
        elif fnmatch(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
            if not rest:
                yield path
            elif entry.is_dir():
                yield from _below(f"{path}/", rest)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # gone, or closed to us: it matches nothing
