"""The memory that a server takes, stated before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from thalweg.engine.memory_plan import MemoryPlan
from thalweg.errors import InvalidInputError
from thalweg.serve.settings import Settings

COPIES_OF_BODIES = 2
"""A body, and its texts and their ids. Answers are counted among the bodies."""


@dataclass(frozen=True)
class ServerPlan:
    """Bytes at the worst moment, besides the interpreter and its libraries.

    models: of each, by name; sessions, prefixes: of each model, what may be in memory; bodies: of requests.
    """

    models: Mapping[str, MemoryPlan]
    sessions: int
    prefixes: int
    bodies: int

    @property
    def total(self) -> int:
        """All of it."""
        kept = len(self.models) * (self.sessions + self.prefixes)
        return sum(plan.total for plan in self.models.values()) + kept + self.bodies

    def rows(self) -> list[tuple[str, int]]:
        """What it is for, and the bytes."""
        found = []
        for name, plan in self.models.items():
            found += [
                (f"{name}: weights", plan.weights),
                (f"{name}: states", plan.states),
                (f"{name}: activations and room", plan.activations + plan.room),
                (f"{name}: sessions in memory, at most", self.sessions),
                (f"{name}: states of prefixes, at most", self.prefixes),
            ]
        return [*found, ("bodies and answers, at most", self.bodies), ("total", self.total)]

    def check(self, most: int | None) -> None:
        """Raises InvalidInputError where it does not fit into `most` bytes."""
        if most is not None and self.total > most:
            raise InvalidInputError(
                f"the server takes up to {self.total / 2**20:,.0f} MiB, but --memory allows {most / 2**20:,.0f}: "
                "lower --session-memory, --prefix-memory, --max-body-bytes or --max-tokens-per-step, or take a smaller "
                "model (--dtype bfloat16, --quantize)"
            )


def plan_server(models: Mapping[str, MemoryPlan], settings: Settings) -> ServerPlan:
    """The plan of a server with these models."""
    return ServerPlan(
        models, settings.session_memory, settings.prefix_memory, COPIES_OF_BODIES * settings.max_body_bytes
    )


def parse_size(text: str) -> int:
    """Bytes: "4GiB", "512MiB", "2GB", "1000000".

    Raises:
        InvalidInputError: it is no size.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    stripped = text.strip()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = stripped[len(number) :].strip().upper()
    try:
        if unit not in units or not 0 < float(number) < 1e15:
            raise ValueError
    except ValueError:
        raise InvalidInputError(f"{text!r:.40} is no size in bytes; write one such as 4GiB or 512MiB") from None
    return int(float(number) * units[unit])
