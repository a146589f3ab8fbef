"""Calls that another thread can stop."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_stop: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("thalweg_stop", default=None)


class Stopped(Exception):
    """The call was stopped, and nobody waits for what it would have given."""


def stoppable(stop: threading.Event, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function whose runs through the engine end, with `Stopped`, at the first step after `stop` was set."""
    if stop.is_set():
        raise Stopped
    token = _stop.set(stop)
    try:
        return function(*args)
    finally:
        _stop.reset(token)


def check_stop() -> None:
    """Raises Stopped if this call is to end."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped
