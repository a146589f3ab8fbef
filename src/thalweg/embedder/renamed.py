"""Attributes that had another name in an earlier release."""

from __future__ import annotations

import warnings
from typing import Any


def renamed(old: str, new: str) -> Any:
    """A property called `old` that stands for the attribute `new`, with a DeprecationWarning."""

    def warn() -> None:
        warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=3)

    def read(owner: Any) -> Any:
        warn()
        return getattr(owner, new)

    def write(owner: Any, value: Any) -> None:
        warn()
        setattr(owner, new, value)

    return property(read, write, doc=f"Deprecated: the earlier name of `{new}`.")
