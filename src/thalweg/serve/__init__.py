"""`thalweg serve`: an embedding server for texts of any length."""

from __future__ import annotations

from thalweg.lazy_names import lazy_names
from thalweg.serve.extras import require_extra

__all__ = ["Settings", "serving"]

__getattr__ = lazy_names(__name__, {"Settings": ".settings", "serving": ".background"}, require_extra)


def __dir__() -> list[str]:
    return sorted(__all__)
