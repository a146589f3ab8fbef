"""The optional packages of `thalweg eval`."""

from __future__ import annotations

import importlib.util

from thalweg.errors import MissingExtraError

PACKAGES = ("mteb", "sentence_transformers", "sklearn", "scipy", "rank_bm25", "matplotlib")


def require_extra() -> None:
    """Raises:
    MissingExtraError: with the pip command.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"thalweg eval needs {', '.join(missing)}: pip install 'thalweg[eval]'")
