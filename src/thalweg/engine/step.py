"""One packed run in the making, and the vectors that it completes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.engine.document import Document, Part
from thalweg.engine.results import Pooled
from thalweg.engine.sources import TokenArray
from thalweg.engine.states import StateStore, select
from thalweg.packing import Packing
from thalweg.pooling.pooling import RunningMean
from thalweg.pooling.vectors import FloatArray

if TYPE_CHECKING:
    from thalweg.engine.engine import Engine


class Step:
    """One packed run in the making: documents in flight first, then probes of their states, then new documents."""

    def __init__(self, engine: Engine, flying: list[Document]) -> None:
        self.engine = engine
        self.schedule = engine.schedule
        self.ids: list[TokenArray] = []
        self.parts: list[tuple[Document, Part]] = []  # in the order of the run; together they are the run
        self.flying: list[Document] = []  # documents that go on after this step
        self.wanted: list[int] = []  # their segments
        self.n_tokens = 0
        probed = [(row, document, document.probe) for row, document in enumerate(flying) if document.probe]
        self.state_rows = [*range(len(flying)), *(row for row, _, _ in probed)]
        self.n_carried = len(flying)
        share = (self.schedule.max_tokens_per_step - len(probed) * engine.n_last) // (len(flying) + 1)
        for document in flying:
            document.probe = None
            self._add(document, share)
        for _, document, part in probed:
            self.ids.append(np.array([engine.probe_id] * engine.n_last))
            self.parts.append((document, part._replace(length=engine.n_last, probe=True)))
            self.n_tokens += engine.n_last

    @property
    def free(self) -> int:
        """Tokens that still fit."""
        return self.schedule.max_tokens_per_step - self.n_tokens

    def start(self, document: Document) -> bool:
        """Take in a new document: whole, or its first piece if a state may be held for it. False: not now."""
        whole = document.ended and self._piece(document, self.free) == document.n_ahead
        roomy = self.free >= min(self.schedule.vertical_chunk_size, self.schedule.max_tokens_per_step // 2)
        if whole or (roomy and len(self.flying) < self.schedule.max_in_flight):
            self._add(document, self.free)
            return True
        return False

    def _piece(self, document: Document, most: int) -> int:
        """Tokens of the document's next piece. A probe needs the state at a section's end, so it ends a piece."""
        n = min(document.n_ahead, most, self.schedule.vertical_chunk_size)
        if self.engine.pooling == "last" and document.section_end is not None:
            n = min(n, document.section_end - document.done)
        return n

    def _add(self, document: Document, most: int) -> None:
        ids, parts = document.take(self._piece(document, most))
        if not parts[-1].last:
            self.flying.append(document)
            self.wanted.append(len(self.ids))
        self.ids.append(ids)
        self.parts += [(document, part) for part in parts]
        self.n_tokens += len(ids)

    @torch.inference_mode()
    def run(self, store: StateStore) -> list[Pooled]:
        """The vectors that this step completes; the store then holds the state of the documents that go on."""
        model = self.engine.model
        packing = Packing(
            [len(ids) for ids in self.ids], n_carried=len(self.state_rows), wanted=self.wanted, device=model.device
        )
        state, new_state = store.rows(self.n_carried), store.rows(len(self.wanted))
        if len(self.state_rows) > self.n_carried:
            state = select(state, self.state_rows)
        ids = np.concatenate(self.ids).astype(np.int64)
        tokens = torch.from_numpy(ids).to(model.device)
        if self.engine.pooling == "mean":
            hidden, _ = model.forward(tokens, packing, state, out=new_state)
            return self._mean(hidden, ids)
        counts, rows = self._pooled_rows()
        hidden, _ = model.forward(tokens, packing, state, rows, new_state)
        results = self._last(hidden, counts)
        # A section's probe may come in the step that ends the document: sections leave in order all the same.
        return sorted(results, key=lambda result: (result.index, result.section))

    def _pooled_rows(self) -> tuple[list[int], list[int]]:
        """Last-token pooling: how many tokens of each part count, and their rows. Sections inside a document wait a
        step."""
        counts: list[int] = []
        rows: list[int] = []
        at = 0
        for document, part in self.parts:
            at += part.length
            counts.append(document.n_pooled(part))
            rows += range(at - counts[-1], at)
            if part.complete and not part.last and not part.probe:
                document.probe = part
        return counts, rows

    def _last(self, hidden: Tensor, counts: list[int]) -> list[Pooled]:
        """Last-token pooling, from the wanted rows: means over documents' last tokens, which two steps may share."""
        results = []
        for (document, part), vectors in zip(self.parts, hidden.cpu().split(counts), strict=True):
            mean = RunningMean(hidden.shape[1]) if part.probe else document.mean
            if len(vectors):
                mean.add(vectors.sum(0).numpy(), len(vectors))
            if part.last or part.probe:
                results.append(_pooled(document, part, mean.take()))
        return results

    def _mean(self, hidden: Tensor, ids: TokenArray) -> list[Pooled]:
        """Mean pooling: add every part to its document's running mean."""
        lengths = [part.length for _, part in self.parts]
        sums = torch.stack([piece.sum(0) for piece in hidden.split(lengths)]).cpu().numpy()
        totals: Iterable[npt.NDArray[np.floating]] = sums
        if self.engine.lexicon is not None:
            codes = self.engine.lexicon.sums(ids, lengths)
            totals = (np.concatenate(pair) for pair in zip(sums, codes, strict=True))
        results = []
        for (document, part), total in zip(self.parts, totals, strict=True):
            document.mean.add(total, part.length)
            if part.complete:
                results.append(_pooled(document, part, document.mean.take()))
        return results


def _pooled(document: Document, part: Part, vector: FloatArray) -> Pooled:
    return Pooled(document.index, part.section, part.section_start, part.stop, vector, part.last)
