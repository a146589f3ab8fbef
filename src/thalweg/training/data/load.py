"""Specs to data sets that a trainer takes: memory-mapped, checked, without duplicates, weighted."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thalweg.errors import CorpusError, InvalidInputError
from thalweg.training.data.build import READ, Built, Options, Part, build, query_prompt
from thalweg.training.data.extras import require_datasets
from thalweg.training.data.sources import Source, resolve_specs

if TYPE_CHECKING:
    from datasets import Dataset

KEPT, DUPLICATE, NOT_DRAWN = "kept", "duplicate", "left out by weight"

_SHOWN = 3


@dataclass(frozen=True)
class TrainingData:
    """Data sets by name, each of one source, so that a batch from one data set is a batch from one source.

    datasets: columns anchor, positive, negative_1, …, negative_k, all text and none empty. A source whose rows have
        different numbers of negatives is several data sets: the largest has the source's name, the others have
        " (k negatives)" after it.
    weights: what a sampler has to draw of each, relative to its size: 1.0, as the shares that the specs ask for are
        drawn already. Batches in proportion to size are the mix that was asked for; `manifest` states the shares.
    counts: of each data set, rows `read`, rows `kept`, and rows left out by reason; `read` is the sum of the others.
    prompts: the text to be put before all anchors of each, "" for none. Where rows of a source have different
        instructions, each is in its anchor.
    notes: texts that were left out of rows that stayed, by reason.
    """

    datasets: dict[str, Dataset]
    weights: dict[str, float]
    counts: dict[str, dict[str, int]]
    prompts: dict[str, str]
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)

    def manifest(self) -> list[dict[str, Any]]:
        """For a model card: name, source, revision, licence (None: unknown), rows, weight, counts of each data set."""
        return [
            {
                "name": name,
                **self.cards[name],
                "rows": len(dataset),
                "prompt": self.prompts[name],
                "counts": self.counts[name],
            }
            for name, dataset in self.datasets.items()
        ]


def load_training_data(
    specs: Sequence[str],
    *,
    seed: int = 0,
    max_negatives: int | None = None,
    deduplicate: bool = True,
    instructions: bool = True,
) -> TrainingData:
    """Read data sets of `{query, positive, negatives…}`.

    Args:
        specs: files, folders, globs, `hub:org/name`, named sets; each may end with `@WEIGHT` (`sources.py` has the
            grammar).
        seed: of the draws: which rows for a weight below 1, which of several positives, which negatives.
        max_negatives: of a row; more are drawn from at random. None keeps all.
        deduplicate: leave out rows that are equal to an earlier one of their source in all texts, up to case, white
            space and forms of characters.
        instructions: put those of rows and named sets before queries, as the paper does; False leaves all out.

    Raises:
        CorpusError: a data set that cannot be had, or a row that cannot be used, with file, row and column.
        InvalidInputError: a setting or weight out of range.
        MissingExtraError: datasets is not installed.
    """
    if max_negatives is not None and max_negatives < 0:
        raise InvalidInputError(f"max_negatives must be at least 0, or None for all, got {max_negatives}")
    require_datasets()
    options = Options(seed, max_negatives, "prefix" if instructions else "none")
    data = TrainingData({}, {}, {}, {})
    for source in resolve_specs(specs):
        _add(data, source, build(source, options), seed, deduplicate)
    return data


def _add(data: TrainingData, source: Source, built: Built, seed: int, deduplicate: bool) -> None:
    dropped = {reason: n for reason, n in built.counts.items() if reason != READ and n}
    if not built.parts:
        told = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()) or "it has no rows"
        raise CorpusError(f"data set {source.name!r} has no row that can be used: {told}")
    for part in built.parts:
        main = part is built.parts[0]
        name = source.name if main else f"{source.name} ({part.n_negatives} negatives)"
        dataset, counts = select_rows(part, source, seed, deduplicate)
        if main:  # what was dropped when the rows were read belongs to no part
            counts = {**counts, READ: counts[READ] + sum(dropped.values()), **dropped}
        data.datasets[name] = dataset
        data.weights[name] = 1.0
        data.counts[name] = counts
        data.prompts[name] = query_prompt(built.instruction)
        data.notes[name] = {reason: n for reason, n in built.notes.items() if n and main}
        data.cards[name] = _card(source, built)


def _card(source: Source, built: Built) -> dict[str, Any]:
    """What a model card says of a source."""
    named = ", ".join(built.sources[:_SHOWN])
    more = " and others" if len(built.sources) > _SHOWN else ""
    card = {
        "source": f"{source.origin} ({named}{more})" if named else source.origin,
        "revision": source.revision or None,
        "licence": source.licence or ", ".join(built.licences) or None,
        "weight": source.weight,
    }
    return card | ({"share": source.share} if source.share != 1 else {})


def select_rows(part: Part, source: Source, seed: int, deduplicate: bool) -> tuple[Dataset, dict[str, int]]:
    """The rows of a part that are trained on, in their order, and how many were left out and why."""
    datasets = require_datasets()
    whole = datasets.Dataset.from_file(str(part.path))
    chosen = _first_of_equals(part.hashes()) if deduplicate else np.arange(len(whole))
    counts = {READ: len(whole), DUPLICATE: len(whole) - len(chosen)}
    if source.weight < 1:
        wanted = max(1, round(source.weight * len(chosen)))
        draw = np.random.default_rng([seed, zlib.crc32(f"{source.name}/{part.n_negatives}".encode())])
        counts[NOT_DRAWN] = len(chosen) - wanted
        chosen = np.sort(draw.choice(chosen, wanted, replace=False))
    counts = {reason: n for reason, n in counts.items() if n} | {KEPT: len(chosen)}
    return whole if len(chosen) == len(whole) else whole.select(chosen), counts


def _first_of_equals(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Ascending numbers of the rows that are equal to none before them."""
    return np.sort(np.unique(hashes, return_index=True)[1])
