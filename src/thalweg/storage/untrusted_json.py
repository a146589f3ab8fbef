"""JSON files that others wrote, read with bounds on their size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thalweg.errors import CheckpointError

MAX_BYTES = 64 * 2**20
"""Twice the largest tokenizer.json that is published. What the worst file of this size becomes fits into 2 GiB."""

MAX_DEPTH = 64
"""Levels of nesting; published files have fewer than ten."""


def read_json(path: Path) -> Any:
    """The parsed file. Python's reader also takes the bare `Infinity` of published configs.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, is too large or too deep, or has a key of an object twice
            (of two values readers take the one or the other).
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise _too_deep(path) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file ({error}); download it again") from error
    level, depth = [value] if isinstance(value, (dict, list)) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(path)
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
    return value


def check_size(path: Path) -> None:
    """For a file that somebody else parses.

    Raises:
        CheckpointError: it is larger than what `read_json` would read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_BYTES >> 20} MiB, which no such file has; download it again")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return whole


def _too_deep(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable JSON file (nested more than {MAX_DEPTH} levels deep); download it again"
    )
