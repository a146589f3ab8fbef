"""What the two training phases draw their batches from: taught texts, pairs, and windows of whole documents.

Token ids are without EOS throughout; a text is an array of ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from data import CONTRASTIVE_SHARES, Source, sampling_weights
from torch import Tensor

CLUSTER = 160  # texts in a cluster, about
QUERY_TOKENS = (50, 120)  # of a passage that must find its window
NEAR = 0.3  # similarity to the teacher of texts that are near each other
LEAST_PAIRS = 32  # of a source, or it is left out


R = TypeVar("R")


def recipe_of(kind: type[R], changes: Sequence[str]) -> R:
    """A recipe with some fields changed, each given as name=value, the value in JSON."""
    defaults = asdict(kind())  # type: ignore[call-overload]
    overrides = dict(item.split("=", 1) for item in changes)
    return kind(**{name: type(defaults[name])(json.loads(value)) for name, value in overrides.items()})


def load_ids(folders: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all caches, and where each unit begins."""
    ids = [np.load(folder / "student.npy") for folder in folders]
    lengths = [np.diff(np.load(folder / "student_at.npy")) for folder in folders]
    return np.concatenate(ids), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])


class Taught:
    """Texts that have a vector of the teacher: (n, d) float32 `vectors`, of length 1, or zeros where not there yet."""

    def __init__(self, folders: list[Path], longest_short: int) -> None:
        self.ids, self.at = load_ids(folders)
        self.lengths = np.diff(self.at)
        found = torch.from_numpy(np.concatenate([np.load(folder / "vectors.npy") for folder in folders])).float()
        there = found.any(1).numpy()
        self.vectors = F.normalize(found, dim=1)
        self.short = np.flatnonzero(there & (self.lengths > 0) & (self.lengths <= longest_short))
        self.passages = np.flatnonzero(there & (self.lengths > longest_short))
        self._cluster()

    def _cluster(self) -> None:
        """Two rounds of k-means on a part of the short texts; then every one goes to the nearest centre."""
        vectors = self.vectors[torch.from_numpy(self.short)]
        rng = torch.Generator().manual_seed(0)
        some = vectors[torch.randperm(len(vectors), generator=rng)[:40_000]]
        centres = some[: max(1, len(self.short) // CLUSTER)]
        for _ in range(2):
            nearest = torch.cat([(part @ centres.t()).argmax(1) for part in some.split(8192)])
            centres = F.normalize(torch.zeros_like(centres).index_add(0, nearest, some), dim=1)
        nearest = torch.cat([(part @ centres.t()).argmax(1) for part in vectors.split(8192)]).numpy()
        order = np.argsort(nearest, kind="stable")
        self._members = np.split(self.short[order], np.cumsum(np.bincount(nearest, minlength=len(centres)))[:-1])
        self._cluster_of = dict(zip(self.short.tolist(), nearest.tolist(), strict=True))

    def text(self, row: int) -> np.ndarray:
        return self.ids[self.at[row] : self.at[row + 1]]

    def family(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """A short text and `size - 1` others: half of them of its nearest, the others of its cluster."""
        row = int(self.short[rng.integers(len(self.short))])
        members = self._members[self._cluster_of[row]]
        members = members[members != row]
        near = members[np.argsort(-(self.vectors[members] @ self.vectors[row]).numpy())[: 2 * size]]
        chosen = rng.permutation(near)[: size // 2]
        return np.unique(np.concatenate([[row], chosen, rng.permutation(members)[: size - 1 - len(chosen)]]))

    def draw_short(self, number: int, family: int, rng: np.random.Generator) -> np.ndarray:
        """About so many distinct rows in families."""
        drawn = np.concatenate([self.family(family, rng) for _ in range(-(-number // family))])
        return drawn[np.sort(np.unique(drawn, return_index=True)[1])]

    def draw_passages(self, number: int, rng: np.random.Generator) -> np.ndarray:
        return (
            rng.permutation(self.passages)[:number]
            if number * 4 > len(self.passages)
            else np.unique(self.passages[rng.integers(len(self.passages), size=number)])
        )


@dataclass
class Sides:
    """Queries and what they must find; `same[i, j]`: key j is no negative of query i."""

    queries: list[np.ndarray]
    keys: list[np.ndarray]
    same: np.ndarray


class Whole:
    """Pairs, whose texts are cut after `longest` tokens, and whole documents."""

    def __init__(self, folders: list[Path], longest: int) -> None:
        self.ids, self.at = load_ids(folders)
        names = json.loads((folders[0] / "sources.json").read_text())
        sources = [Source(*name) for name in names]
        tables, pairs = [], []
        units = texts = 0
        for folder in folders:
            assert json.loads((folder / "sources.json").read_text()) == names, "caches of different preparations"
            table, some = np.load(folder / "texts.npy"), np.load(folder / "pairs.npy")
            pairs.append(some + np.array([texts, texts, 0]))
            tables.append(table + np.array([units, 0, 0, 0]))
            texts, units = texts + len(table), units + len(np.load(folder / "student_at.npy")) - 1
        self.texts, found = np.concatenate(tables), np.concatenate(pairs)
        self._work = np.concatenate([np.load(folder / "works.npy") for folder in folders])
        works = (np.flatnonzero(self._work == work) for work in np.unique(self._work[self._work > 0]))
        self._works = [members for members in works if len(members) > 1]
        lengths = self.at[self.texts[:, 0] + self.texts[:, 1]] - self.at[self.texts[:, 0]]
        document = self.texts[:, 3] == 1
        fits = (lengths[found[:, :2]] > 0).all(1) & ~document[found[:, 1]]
        self._longest = longest
        self.pairs = {int(s): found[fits & (found[:, 2] == s), :2] for s in np.unique(found[:, 2])}
        self.pairs = {s: rows for s, rows in self.pairs.items() if len(rows) >= LEAST_PAIRS}
        self._sources = np.array(list(self.pairs))
        share = sampling_weights(sources, self._sources, CONTRASTIVE_SHARES, most_repeated=1e9)
        share *= np.sqrt([len(self.pairs[s]) for s in self._sources])
        self._share = share / share.sum()
        self.summaries = found[document[found[:, 1]] & (lengths[found[:, 0]] >= QUERY_TOKENS[0])][:, :2]
        self.documents = self.texts[document & (self.texts[:, 1] >= 8)]
        self.documents = self.documents[np.argsort(-self.documents[:, 1])]

    def text(self, number: int) -> np.ndarray:
        first, count, *_ = self.texts[number]
        return self.ids[self.at[first] : self.at[first + count]]

    def draw_pairs(self, number: int, rng: np.random.Generator) -> Sides:
        """Pairs of one source; two with the same text are not each other's negatives."""
        rows = self.pairs[int(rng.choice(self._sources, p=self._share))]
        rows = rows[rng.permutation(len(rows))[:number]]
        same = (rows[:, None, 0] == rows[None, :, 0]) | (rows[:, None, 1] == rows[None, :, 1])
        queries, keys = ([self.text(text)[: self._longest] for text in side] for side in rows.T)
        return Sides(queries, keys, same)

    def draw_summaries(self, number: int, rng: np.random.Generator) -> Sides:
        """A piece of a summary must find its document, and one of a document another document of the same work."""
        related = [rng.permutation(members)[:2] for members in self._works]
        rows = np.concatenate([self.summaries, np.array(related, np.int64).reshape(-1, 2)])
        rows = rows[rng.permutation(len(rows))[:number]]
        work = self._work[rows[:, 1]]
        same = (rows[:, None, 1] == rows[None, :, 1]) | ((work[:, None] == work[None, :]) & (work > 0))
        return Sides([_piece(self.text(q), rng) for q, _ in rows], [self.text(d) for _, d in rows], same)

    def draw_windows(self, units: int, number: int, most_per_document: int, rng: np.random.Generator) -> Sides:
        """A passage must find the window it was cut from, among others of its book and of some more books."""
        queries, keys = [], []
        fitting = self.documents[self.documents[:, 1] >= units]
        weight = np.minimum(fitting[:, 1] // units, most_per_document).astype(float)
        order = rng.choice(len(fitting), min(number, len(fitting)), replace=False, p=weight / weight.sum())
        for first, count, *_ in fitting[order]:
            offset = int(rng.integers(count % units + 1))
            starts = rng.permutation(np.arange(offset, count - units + 1, units))[:most_per_document]
            for start in first + starts:
                keys.append(self.ids[self.at[start] : self.at[start + units]])
                queries.append(_piece(keys[-1], rng))
            if len(keys) >= number:
                break
        return Sides(queries, keys, np.eye(len(keys), dtype=bool))


def _piece(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    length = int(rng.integers(*QUERY_TOKENS))
    start = int(rng.integers(max(1, len(text) - length)))
    return text[start : start + length]


def info_nce(query: Tensor, key: Tensor, same: Tensor, temperature: float) -> Tensor:
    """Both directions; (n, d) normalised, the i-th key belongs to the i-th query, `same` (n, n) are no negatives."""
    return (one_way(query, key, same, temperature) + one_way(key, query, same.t(), temperature)) / 2


def one_way(query: Tensor, key: Tensor, same: Tensor, temperature: float) -> Tensor:
    """(n, d) queries must find theirs among (m, d) keys, m >= n, of which the i-th belongs to the i-th query."""
    own = torch.eye(len(query), len(key), dtype=torch.bool, device=query.device)
    scores = (query @ key.t() / temperature).masked_fill(same & ~own, -1e4)
    return F.cross_entropy(scores, torch.arange(len(query), device=query.device))


def structure_loss(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """How far the similarities within a batch are from the teacher's: squared error of all, divergence of each row, and
    squared error of the near ones.

    The second compares the distributions of softmax(similarity / temperature) over the other texts: it asks for the
    right order among the near ones, where the squared error is ruled by the many far ones. But a row may be right and
    all of it too low, as those of long sentences become; the third holds near pairs of all rows to one scale.
    """
    mine, theirs = student @ student.t(), teacher @ teacher.t()
    own = torch.eye(len(student), dtype=torch.bool, device=student.device)
    wanted = F.log_softmax((theirs / temperature).masked_fill(own, -1e4), 1)
    given = F.log_softmax((mine / temperature).masked_fill(own, -1e4), 1)
    divergence = F.kl_div(given, wanted, reduction="batchmean", log_target=True)
    error, near = (mine - theirs).square(), (theirs > NEAR) & ~own
    return error.mean(), divergence, (error * near).sum() / near.sum().clamp(min=1)
