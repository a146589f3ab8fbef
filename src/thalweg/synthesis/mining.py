"""Negatives for types whose examples have none: the positive of another example, a random one of the 10 nearest.

That rule, the paper's, is the default of `mine_hard_negatives`, which does the work. What it makes is kept in a file
whose name follows from all that decides it, so a run that is repeated does not mine again, and one that was killed goes
on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.storage.durable import write_durably
from thalweg.synthesis.tasks import TaskType

if TYPE_CHECKING:
    from thalweg.embedder.embedder import Embedder

MINED_TYPES: frozenset[TaskType] = frozenset({"short-short", "long-long"})
"""That have no negative otherwise."""

Rows = Callable[[], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Mining:
    """Which types get negatives, and from which model."""

    embedder: Embedder
    types: frozenset[TaskType] = MINED_TYPES


def with_mined(
    name: TaskType,
    rows: Rows,
    embedder: Embedder,
    seed: int,
    folder: Path,
    on_status: Callable[[str], None] = lambda told: None,
) -> Iterator[dict[str, Any]]:
    """The rows of a type, each with a mined negative behind those it has; `mined` says how many it got (1, or 0 where
    there is no other text).

    rows: gives them anew with each call, no query twice; folder: for files of the work.

    Raises:
        MissingExtraError: datasets is not installed.
    """
    from thalweg.training.data import Rule, mine_hard_negatives

    wanted = ("instruction", "query", "positive")
    digest = hashlib.blake2b(f"{embedder.fingerprint}/{seed}".encode(), digest_size=8)
    for row in rows():
        digest.update(_line({key: row[key] for key in wanted}))
    pairs = folder / f"{name}-{digest.hexdigest()}.pairs.jsonl"
    out = folder / f"{name}-{digest.hexdigest()}.mined.jsonl"
    folder.mkdir(exist_ok=True)
    if not out.exists():
        if not pairs.exists():
            lines = (_line({key: row[key] for key in wanted}) for row in rows())
            write_durably(pairs, lambda stream: stream.writelines(lines))
        mine_hard_negatives(
            str(pairs),
            out,
            embedder,
            Rule(seed=seed),
            mode="resume",
            on_status=lambda status: on_status(f"{status.done:,} of {status.total:,} {status.stage}"),
        )
    with out.open("rb") as lines_of_mined:
        for row, line in zip(rows(), lines_of_mined, strict=True):
            mined = json.loads(line)
            assert mined["query"] == row["query"], "no row is dropped or moved, as no query comes twice"
            row["negatives"] = [*row["negatives"], *mined["negatives"]]
            row["mined"] = len(mined["negatives"])
            yield row


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
