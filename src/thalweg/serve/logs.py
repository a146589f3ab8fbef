"""What a server logs: a JSON object a line, with neither texts nor keys.

Messages of errors may quote what a client sent; only their types and where they were raised are logged.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import orjson

from thalweg.system.terminal import safe_json

log = logging.getLogger("thalweg.serve")

_LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "fastapi")


class JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
        }
        event = getattr(record, "event", None)
        fields |= event if event is not None else {"event": "message", "logger": record.name, "text": _text_of(record)}
        return safe_json(orjson.dumps(fields, default=str).decode())


def _text_of(record: logging.LogRecord) -> str:
    """The message, and of an error its type and frames."""
    message = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    return message if error is None else f"{message}: {_where(error)}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    return f"{type(error).__name__} in {places or 'no frame'}"


def log_event(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log what happened. The fields are numbers and names of the server's own."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={"event": {"event": event, **fields}})


def log_failure(what: str, error: BaseException) -> None:
    """Log an error of ours, without its message."""
    log_event("failure", logging.ERROR, what=what, error=_where(error))


@contextmanager
def json_lines(stream: TextIO | None = None, level: int = logging.INFO) -> Iterator[None]:
    """Have everything that this process logs written as lines of JSON. stream: None is stderr."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("", "thalweg", *_LIBRARIES)]
    before = [(each, each.handlers[:], each.level, each.propagate, each.disabled) for each in loggers]
    for each in loggers:
        each.handlers[:], each.propagate = [], True
    root, ours, *_ = loggers
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    ours.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for each, handlers, old_level, propagate, disabled in before:
            each.handlers[:], each.propagate, each.disabled = handlers, propagate, disabled
            each.setLevel(old_level)
