"""A process that measures, watched by the one that wants the figures.

The child gets a task as JSON and writes a result as JSON. It is ended when it takes too much memory or time, and ends
itself when its parent is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.bench.point import ERROR, OUT_OF_MEMORY, TIME_LIMIT
from thalweg.errors import MissingExtraError

POLL = 0.02
"""Seconds between looks at a process."""


@dataclass(frozen=True)
class Limits:
    """What a process may take: bytes of resident memory, seconds in all."""

    memory: int
    seconds: float


def free_memory() -> int:
    """Bytes that could be used now without hurting anything else."""
    return int(_psutil().virtual_memory().available)


def result_of(module: str, task: dict[str, Any], limits: Limits, *more: str) -> dict[str, Any]:
    """What `python -m module TASK RESULT` found out; or a `status` and `message` that say why there is nothing."""
    with tempfile.TemporaryDirectory(prefix="thalweg-bench-") as folder:
        target, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [sys.executable, "-m", module, json.dumps(task), str(target), *more]
        with open(log, "wb") as stream:
            ended = _watched(command, limits, stream)
        if target.exists():
            return dict(json.loads(target.read_text()))
        return ended or {"status": ERROR, "message": _last_line(log) or "the process ended without a result"}


def _watched(command: list[str], limits: Limits, log: Any) -> dict[str, Any] | None:
    """Run a command to its end, or end it; why, if it came to no good end."""
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    began, most = time.perf_counter(), 0
    try:
        watched = _psutil().Process(process.pid)
        while process.poll() is None:
            most = max(most, _resident(watched))
            if most > limits.memory:
                message = f"more than the limit of {limits.memory / 2**30:.1f} GiB of resident memory"
                return {"status": OUT_OF_MEMORY, "message": message, "memory": {"peak_rss": most}}
            if time.perf_counter() - began > limits.seconds:
                message = f"more than the limit of {limits.seconds:,.0f} seconds"
                return {"status": TIME_LIMIT, "message": message, "memory": {"peak_rss": most}}
            _wait(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
    if process.returncode == -9:
        return {"status": OUT_OF_MEMORY, "message": "ended by the system, which had no memory left"}
    return None


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(POLL)
    except subprocess.TimeoutExpired:
        return


def _resident(process: Any) -> int:
    try:
        return int(process.memory_info().rss)
    except _psutil().Error:  # it has just ended
        return 0


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("measuring needs psutil: pip install 'thalweg[bench]'") from error
    return psutil


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: do the task of the command line and leave the result, whole or not at all."""
    task, target = json.loads(sys.argv[1]), Path(sys.argv[2])
    _end_with_parent()
    _give_way()
    result = work(task)
    fresh = target.with_suffix(".tmp")
    fresh.write_text(json.dumps(result))
    os.replace(fresh, target)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input and never writes: when it closes, the parent is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _give_way() -> None:
    """If the system runs out of memory, let it end this process and not another of the user's (Linux)."""
    path = Path("/proc/self/oom_score_adj")
    if path.exists():
        try:
            path.write_text("1000")
        except OSError:  # a container may forbid it
            return
