"""A process that measures, watched by the one that wants the figures.

The child is forked by a server that has imported PyTorch and the module that measures, and nothing else: every child
begins alike, without the seconds that imports take. It is ended when it takes too much memory or time, and ends itself
when its parent is gone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from thalweg.bench.machine import psutil
from thalweg.bench.point import ERROR, OUT_OF_MEMORY, TIME_LIMIT

Work = Callable[..., dict[str, Any]]

POLL = 0.02
"""Seconds between looks at a process."""


@dataclass(frozen=True)
class Limits:
    """What a process may take: bytes of resident memory, seconds in all."""

    memory: int
    seconds: float


def free_memory() -> int:
    """Bytes that could be used now without hurting anything else."""
    return int(psutil().virtual_memory().available)


def result_of(work: Work, task: dict[str, Any], limits: Limits, *more: str) -> dict[str, Any]:
    """What `work(task, *more)` finds out in a process; or a `status` and `message` that say why there is nothing.

    Args:
        work: a function of a module, whose result can be written as JSON.
    """
    with tempfile.TemporaryDirectory(prefix="thalweg-bench-") as folder:
        target, log = Path(folder) / "result.json", Path(folder) / "log"
        context = _forking(work)
        place = _Place(os.getcwd(), dict(os.environ), target, log)
        parent_lives, end = context.Pipe(duplex=False)
        with parent_lives, end:
            ended = _watched(context.Process(target=_serve, args=(work, task, more, place, parent_lives)), limits)
        if target.exists():
            return dict(json.loads(target.read_text()))
        return ended or {"status": ERROR, "message": _last_line(log) or "the process ended without a result"}


def _forking(work: Work) -> multiprocessing.context.ForkServerContext:
    """Where processes come from; the first one asked for starts the server."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that do not spin while they wait
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    return context


def _watched(process: BaseProcess, limits: Limits) -> dict[str, Any] | None:
    """Run a process to its end, or end it; why, if it came to no good end."""
    began, most = time.perf_counter(), 0
    process.start()
    try:
        watched = psutil().Process(process.pid)
        while process.exitcode is None:
            most = max(most, _resident(watched))
            if most > limits.memory:
                message = f"more than the limit of {limits.memory / 2**30:.1f} GiB of resident memory"
                return {"status": OUT_OF_MEMORY, "message": message, "memory": {"peak_rss": most}}
            if time.perf_counter() - began > limits.seconds:
                message = f"more than the limit of {limits.seconds:,.0f} seconds"
                return {"status": TIME_LIMIT, "message": message, "memory": {"peak_rss": most}}
            process.join(POLL)
    finally:
        process.kill()
        process.join()
    if process.exitcode == -9:
        return {"status": OUT_OF_MEMORY, "message": "ended by the system, which had no memory left"}
    return None


def _resident(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil().Error:  # it has just ended
        return 0


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


@dataclass(frozen=True)
class _Place:
    """Where a child works, as its parent did when it was asked for: not as the server did when it was started."""

    folder: str
    environment: dict[str, str]
    target: Path
    log: Path

    def enter(self) -> None:
        os.setsid()  # Ctrl-C is for the parent, which ends this process
        with open(self.log, "wb") as log:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)


def _serve(work: Work, task: dict[str, Any], more: tuple[str, ...], place: _Place, parent_lives: Connection) -> None:
    """The child's side: do the task and leave the result, whole or not at all."""
    place.enter()
    threading.Thread(target=_end_with_parent, args=(parent_lives,), daemon=True).start()
    _give_way()
    result = work(task, *more)
    fresh = place.target.with_suffix(".tmp")
    fresh.write_text(json.dumps(result))
    os.replace(fresh, place.target)


def _end_with_parent(parent_lives: Connection) -> None:
    """The parent holds the other end and never writes: when it closes, the parent is gone."""
    parent_lives.poll(None)
    os._exit(1)


def _give_way() -> None:
    """If the system runs out of memory, let it end this process and not another of the user's (Linux)."""
    path = Path("/proc/self/oom_score_adj")
    if path.exists():
        try:
            path.write_text("1000")
        except OSError:  # a container may forbid it
            return
