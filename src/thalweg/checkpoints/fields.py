"""The JSON files of a checkpoint: typed reading, whose every error names the file, the key and the value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thalweg.errors import CheckpointError


def read_json(path: Path) -> Any:
    """The parsed file. Python's reader also takes the bare `Infinity` of published configs.

    Raises:
        CheckpointError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file ({error}); download it again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds {_short(value)}")
    return value


def read_optional_object(path: Path) -> dict[str, Any]:
    """As `read_json_object`, and {} where the file is absent."""
    return read_json_object(path) if path.is_file() else {}


def write_json(path: Path, content: Any) -> None:
    """Into a folder that is made if it is not there."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Fields:
    """The keys of one config, read with a type and a default.

    A missing key and an explicit null are the same. All readers raise CheckpointError for a value of another type,
    and for a missing key without a default.
    """

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self._get(key, default)
        # bool is an int in Python, but `"num_heads": true` is a mistake; 4.0 for 4 is not.
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not float(value).is_integer() or value < minimum:
            raise self.wrong(key, value, f"an integer of at least {minimum}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def section(self, key: str) -> Fields:
        """The object under a key, {} where it is absent."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Fields(value, f"{self.source}, {key}")

    def require(self, key: str, default: Any, allowed: Iterable[Any], why: str) -> None:
        """Refuse a value outside `allowed`: a variant of the architecture that the model does not have."""
        value = self._get(key, default)
        if value not in tuple(allowed):
            raise CheckpointError(f"{self.source}: {key} is {_short(value)}, which is not supported: {why}")

    def wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {key} must be {expected}, but is {_short(value)}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.source} has no {key!r}, which this format needs")
        return value


def listing(names: Iterable[object], limit: int = 10) -> str:
    """The first names in order and how many more: for errors about thousands of tensors."""
    ordered = sorted(str(name) for name in names)
    more = f" … and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."
