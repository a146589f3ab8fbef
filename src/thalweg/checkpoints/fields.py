"""The JSON files of a checkpoint: typed reading, whose every error names the file, the key and the value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thalweg.errors import CheckpointError
from thalweg.storage.untrusted_json import read_json

MAX_INTEGER = 2**31 - 1
"""The largest size or count that a config may state: above all that exists, below what sums and products overflow."""

MAX_FACTOR = 1024.0
"""The most that a config may say one width is of another."""


def read_json_object(path: Path) -> dict[str, Any]:
    """As `untrusted_json.read_json`, for a file that must hold an object."""
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

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():  # 4.0 for 4 is no mistake
            value = int(value)
        # bool is an int in Python, but `"num_heads": true` is a mistake.
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.wrong(key, value, f"an integer of at least {minimum}")
        if value > maximum:
            raise self.wrong(key, value, f"an integer of at most {maximum:,}")
        return value

    def number(self, key: str, default: float | None = None, *, minimum: float, maximum: float) -> float:
        """A finite number: NaN and infinity are no numbers that a model can be computed with."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value <= maximum:
            raise self.wrong(key, value, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def epsilon(self, key: str, default: float | None = None) -> float:
        """What a norm adds to what it divides by."""
        return self.number(key, default, minimum=0.0, maximum=1.0)

    def factor(self, key: str, default: float | None = None) -> float:
        """What a width is multiplied by to give another."""
        return self.number(key, default, minimum=0.0, maximum=MAX_FACTOR)

    def text(self, key: str) -> str | None:
        """A text, or None where there is none."""
        value = self.raw.get(key)
        if not isinstance(value, (str, type(None))):
            raise self.wrong(key, value, "a text")
        return value

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
    ordered = sorted(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in map(str, names))
    more = f" … and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


MAX_NAME = 160
"""Characters of a name in an error; names of tensors and files may be of any length."""


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."
