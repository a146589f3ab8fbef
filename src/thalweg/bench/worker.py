"""The process of one point."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from thalweg.bench.machine import OtherWork, machine
from thalweg.bench.meter import Meter, spread
from thalweg.bench.point import ERROR, OK, OUT_OF_MEMORY, Point
from thalweg.bench.subjects import Step, Subject, subject
from thalweg.errors import ThalwegError

TURNS = 5
"""Repetitions of a step and its matrix products."""

WARM_TOKENS = 1024
"""On the CPU a warm-up of more tokens brings nothing and only costs time."""


def measure(point: Point) -> dict[str, Any]:
    """Run one point in this process; the result as the study records it."""
    try:
        if point.threads is not None:
            torch.set_num_threads(point.threads)
        meter = Meter(point.device)
        result = _measured(point, meter, subject(point))
    except (torch.OutOfMemoryError, MemoryError) as error:
        result = {"status": OUT_OF_MEMORY, "message": _first_line(error)}
    except (ThalwegError, RuntimeError, ImportError, ValueError, OSError) as error:
        text = _first_line(error)
        memory = "can't allocate memory" in str(error) or "out of memory" in str(error)
        result = {"status": OUT_OF_MEMORY if memory else ERROR, "message": text}
    return {**result, "machine": machine(point.device if result["status"] == OK else "cpu")}


def _measured(point: Point, meter: Meter, subject: Subject) -> dict[str, Any]:
    warm = point.length if meter.cuda else min(point.length, max(WARM_TOKENS // point.batch, 1))
    for _ in range(point.warmup):
        subject.run(warm)
    before = meter.reset()
    times: list[float] = []
    others = OtherWork()
    while len(times) < point.repeat and (point.budget is None or sum(times) < point.budget):
        times.append(meter.seconds(lambda: subject.run(point.length)))
    result = {
        "status": OK,
        "runs": len(times),
        "other_cores": others.cores(),
        "seconds": {**spread(times), "all": times},
        "seconds_per_text": spread([each / point.batch for each in times]),
        "tokens_per_s": spread([point.batch * point.length / each for each in times]),
        "memory": {**before, **meter.peak()},
        **subject.facts,
    }
    if point.limit and subject.step is not None:
        result |= _share(meter, subject.step())
    return result


def _share(meter: Meter, step: Step) -> dict[str, Any]:
    """The machine's limit, and the model's share of it: one step in turn with its matrix products alone.

    The step computes the vectors of all tokens. A whole run computes the last layer's for the pooled ones only, which
    with few layers makes a difference.
    """
    step.products(), step.model()
    turns = [(meter.seconds(step.products), meter.seconds(step.model)) for _ in range(TURNS)]
    return {
        "limit_tokens_per_s": spread([step.n_tokens / alone for alone, _ in turns]),
        "share_of_limit": spread([alone / whole for alone, whole in turns]),
    }


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]


def work(task: dict[str, Any]) -> dict[str, Any]:
    """The result of a point that came as JSON."""
    warnings.simplefilter("ignore")
    return measure(Point.from_json(task))
