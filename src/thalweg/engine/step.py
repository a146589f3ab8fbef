"""One packed run in the making, and the vectors that it completes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from thalweg.engine.document import Document, Part
from thalweg.engine.results import DocumentState, Failure, OpenSection, Pooled
from thalweg.engine.sources import TokenArray
from thalweg.engine.states import StateStore
from thalweg.errors import NumericalError
from thalweg.models.protocol import RecurrentModel, State
from thalweg.packing import Packing
from thalweg.pooling.pooling import Pooling

Found: TypeAlias = tuple[Document, "Pooled | Failure"]
"""A result, and whose it is."""


class Step:
    """One packed run: documents that go on from a state first, then probes of their states, then new documents.

    It knows what is to be run and how it is pooled. Who takes part, and with how many tokens, the engine has decided.

    Args:
        pooling: what becomes of the hidden vectors.
        carried: documents in flight that take part, in the order of their states, and how many tokens of each.
        probes: documents at the end of a section, and the row of each one's state in the store.
        shared: documents that begin and end in this step, and the row of the state that each begins with.
        new: documents that begin, and how many tokens of each.
        probe_id: the id that probes feed.
    """

    def __init__(
        self,
        pooling: Pooling,
        carried: Sequence[tuple[Document, int]],
        probes: Sequence[tuple[int, Document]],
        shared: Sequence[tuple[int, Document]],
        new: Sequence[tuple[Document, int]],
        probe_id: int | None,
    ) -> None:
        self.pooling = pooling
        self.ids: list[TokenArray] = []
        self.parts: list[tuple[Document, Part]] = []  # in the order of the run; together they are the run
        self.kept: list[Document] = []  # documents whose state is wanted after this step
        self.wanted: list[int] = []  # their segments
        self.n_carried = len(carried)
        self.other_rows = [row for row, _ in (*probes, *shared)]  # of segments after those of `carried`
        probed = [(document, document.probe) for _, document in probes]
        for document, _ in probed:
            document.probe = None
        for document, n in carried:
            self._add(document, n)
        for document, part in probed:
            assert part is not None
            assert probe_id is not None
            self.ids.append(np.full(part.length, probe_id))
            self.parts.append((document, part))
        for document, n in (*((document, document.n_ahead) for _, document in shared), *new):
            self._add(document, n)
        self.n_tokens = sum(map(len, self.ids))

    def _add(self, document: Document, n: int) -> None:
        ids, parts = document.take(n)
        if not parts[-1].last or document.keep_state:
            self.kept.append(document)
            self.wanted.append(len(self.ids))
        self.ids.append(ids)
        self.parts += [(document, part) for part in parts]

    @torch.inference_mode()
    def run(self, model: RecurrentModel, store: StateStore, first: int, number: int) -> list[Found]:
        """The vectors that this step completes, and the documents that it found to be broken.

        The rows of the store from `first` on hold the states of `carried`, and those of `kept` afterwards. `number`: of
        the step, for messages.
        """
        carried_rows = [*range(first, first + self.n_carried), *self.other_rows]
        packing = Packing(
            [len(ids) for ids in self.ids],
            n_carried=len(carried_rows),
            carried_rows=carried_rows,
            wanted=self.wanted,
            device=model.device,
        )
        state = store.rows(0, packing.n_states)
        new_state = store.rows(first, first + len(self.wanted))
        ids = np.concatenate(self.ids).astype(np.int64)
        counts = [self._n_wanted(document, part) for document, part in self.parts]
        lengths = [part.length for _, part in self.parts]
        rows = None if counts == lengths else _rows(counts, lengths)
        hidden, _ = model.forward(torch.from_numpy(ids).to(model.device), packing, state, rows, new_state)
        states = {
            document: store.copy(first + row)
            for row, document in enumerate(self.kept)
            if document.total == document.done
        }
        return self._pool(hidden, counts, ids, lengths, states, number)

    def _n_wanted(self, document: Document, part: Part) -> int:
        if part.probe is not None:
            return part.length
        total = document.total
        return self.pooling.n_wanted(part.length, None if total is None else total - part.stop)

    def _pool(
        self,
        hidden: Tensor,
        counts: list[int],
        ids: TokenArray,
        lengths: list[int],
        states: dict[Document, State],
        number: int,
    ) -> list[Found]:
        """Add every part to its document's sums, and take those that are complete. `states`: of those that end, where
        they are wanted."""
        sums = self.pooling.sums(hidden, counts, ids, lengths)
        finite = np.isfinite(sums).all(axis=1)
        results: list[Found] = []
        failed: set[Document] = set()
        for (document, part), total, count, is_finite in zip(self.parts, sums, counts, finite.tolist(), strict=True):
            if document in failed:
                continue
            if not is_finite:
                failed.add(document)
                results.append((document, Failure(document.key, _not_finite(document, part, number))))
                continue
            kept = document.section_sums
            mean = kept.total if part.probe is None else part.probe
            if count:
                mean.add(total, count)
            if part.begins:
                kept.begin()
            if part.due and document.n_probe and part.probe is None and not part.last:
                # Its vector is that of the text so far with EOS after it, which a copy of the state takes next time.
                document.probe = Part(part.stop, document.n_probe, part.due, probe=self.pooling.carried(mean))
                continue
            for section in part.due:
                last = part.last and section is part.due[-1]
                state = None
                since = kept.first()
                if last and document in states:
                    goes_on = document.sections is not None and document.sections.open_ended
                    section_now = OpenSection(section.number, section.start, since) if goes_on else None
                    state = DocumentState(states[document], self.pooling.carried(mean), part.stop, section_now)
                vector = mean.mean(since=since)
                found = Pooled(document.key, section.number, section.start, section.stop, vector, last, state)
                results.append((document, found))
        # A section's probe may come in the step that ends the document: sections leave in order all the same.
        place = {document: at for at, (document, _) in reversed(list(enumerate(self.parts)))}
        return sorted(results, key=lambda entry: (place[entry[0]], _section(entry[1])))


def _section(result: Pooled | Failure) -> float:
    return result.section if isinstance(result, Pooled) else float("inf")


def _rows(counts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Positions in the run of the last `counts` tokens of parts of these `lengths`."""
    return [row for end, count in zip(accumulate(lengths), counts, strict=True) for row in range(end - count, end)]


def _not_finite(document: Document, part: Part, number: int) -> NumericalError:
    begin = part.stop - part.length
    return NumericalError(
        f"the model's numbers became inf or NaN in tokens {begin} to {part.stop} of document {document.key!r} (step "
        f"{number}). Its weights hold such a number, or float16 overflowed: load it with dtype='bfloat16' or 'float32'"
    )
