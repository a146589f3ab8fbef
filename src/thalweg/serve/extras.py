"""The optional packages of `thalweg serve`."""

from __future__ import annotations

import importlib.util

from thalweg.errors import MissingExtraError

PACKAGES = ("fastapi", "uvicorn", "httptools", "msgspec", "orjson", "prometheus_client")


def require_extra() -> None:
    """Raises:
    MissingExtraError: with the pip command.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"thalweg serve needs {', '.join(missing)}: pip install 'thalweg[serve]'")
