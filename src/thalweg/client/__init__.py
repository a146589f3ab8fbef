"""A server's vectors from another process: `Client`, and `AsyncClient` with the same methods."""

from __future__ import annotations

import importlib.util

from thalweg.errors import MissingExtraError
from thalweg.lazy_names import lazy_names

__all__ = ["AsyncClient", "AsyncRemoteSession", "Client", "RemoteSection", "RemoteSession"]


def _require() -> None:
    if importlib.util.find_spec("httpx") is None:
        raise MissingExtraError("thalweg.client needs httpx: pip install 'thalweg[client]'")


__getattr__ = lazy_names(
    __name__,
    {
        "AsyncClient": ".async_client",
        "AsyncRemoteSession": ".async_client",
        "Client": ".client",
        "RemoteSection": ".wire",
        "RemoteSession": ".client",
    },
    _require,
)


def __dir__() -> list[str]:
    return sorted(__all__)
