"""Random edits of what JSON holds, as somebody makes them who wants to do harm."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, float("nan"), float("inf")),
    *(10**30, -(10**30), 2**31, 2**63, 2**64 - 1, 5000, 10**9),
    *("", "x", "\ud800", "zz", "00", "ff", "e4", "a" * 5000, "token"),
    *([], [1], [-1], [[1, 2]], [[0, 1], [0, 0]], ["a"], [2**40] * 3, [0] * 2000),
    *({}, {"a": 1}, {"in tensor": "sums"}, {"in tensor": "held"}, {"in tensor": "none"}, {"in tensor": 3}),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything inside."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for key in range(len(value)):
            yield from places(value[key], (*at, key))


def edit_json(rng: random.Random, value: Any) -> None:
    """One edit somewhere inside: a number that is a little off, a shorter row, an entry less, or anything at all."""
    way = rng.choice(list(places(value)))
    inside = value
    for key in way[:-1]:
        inside = inside[key]
    old = inside[way[-1]]
    if rng.random() < 0.1 and isinstance(inside, dict):
        del inside[way[-1]]
    elif type(old) is int and rng.random() < 0.4:
        inside[way[-1]] = old + rng.choice([-300, -1, 1, 7, 1000])
    elif isinstance(old, list) and old and rng.random() < 0.4:
        old.pop(rng.randrange(len(old)))
    else:
        inside[way[-1]] = copy.deepcopy(rng.choice(WRONG))
