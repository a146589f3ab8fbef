"""Who takes part in the next step, and with how many tokens. Every decision about the order of work is here.

- **Long documents share.** Those in flight divide the step among clients, and each client's part among its documents;
  what one cannot use goes to the others.
- **Short before long.** Short documents (`Schedule.short_tokens`) that wait get half of a step at least, and all that
  long ones leave; they need no state, so that no number of long documents keeps them waiting.
- **Short steps in company.** While several clients are there, and a little longer, long documents take no more of a
  step than short ones do, or `COMPANY_TOKENS`: a query does not wait for a full step of somebody's book.
- **Fair among clients.** Clients take turns (deficit round robin): each turn is worth `QUANTUM` tokens, and what a
  client does not use while it has documents waiting is kept for its next turn. A client that adds thousands of texts
  takes nothing from another's turn.
- **Priority** is strict: among documents that wait, those of a higher one come first.

What a document costs others is bounded: a step has at most `vertical_chunk_size` tokens of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from thalweg.engine.document import Document
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer

QUANTUM = 256
"""Tokens of a client's turn."""

COMPANY_TOKENS = 256
"""Tokens of all long documents in a step while another client's documents come and go: those would wait for the rest of
the step under way and for a step of their own."""

PATIENCE = 256
"""Steps for which that lasts after two clients were last seen."""

WINDOW = 32
"""Documents of a client that are looked at ahead of their turn, so that a long one without a free state does not stop
the short ones behind it."""


@dataclass
class _Line:
    """One client's documents of one priority, in the order in which they came. Those in `seen` have been read ahead."""

    seen: list[Document] = field(default_factory=list)
    unseen: deque[Document] = field(default_factory=deque)
    credit: int = 0

    def __bool__(self) -> bool:
        return bool(self.seen or self.unseen)


class Pending:
    """Documents that have not begun, in the order in which they are to begin.

    Args:
        schedule: the bounds.
        look_ahead: reads the beginning of a document; False where it is not to be kept (it has failed or must wait).
    """

    def __init__(self, schedule: Schedule, look_ahead: Callable[[Document], bool]) -> None:
        self._schedule = schedule
        self._look_ahead = look_ahead
        self._lines: dict[int, dict[Hashable, _Line]] = {}  # by priority, by client: the first client's turn is next

    def __len__(self) -> int:
        return sum(len(line.seen) + len(line.unseen) for line in self._all())

    def add(self, document: Document, *, first: bool = False) -> None:
        """Behind the others of its client and priority, or before them."""
        line = self._lines.setdefault(document.priority, {}).setdefault(document.client, _Line())
        if first:
            line.unseen.appendleft(document)
        else:
            line.unseen.append(document)

    def remove(self, document: Document) -> None:
        """Forget a document, which may be here or not."""
        line = self._lines.get(document.priority, {}).get(document.client)
        if line is not None:
            line.seen = [other for other in line.seen if other is not document]
            if document in line.unseen:
                line.unseen.remove(document)

    def read(self) -> None:
        """Look ahead in the documents whose turn may come in the next step."""
        for line in self._all():
            known = sum(document.n_ahead for document in line.seen if self._is_whole(document))
            while line.unseen and len(line.seen) < WINDOW and known < self._schedule.max_tokens_per_step:
                document = line.unseen.popleft()
                if self._look_ahead(document):
                    line.seen.append(document)
                    known += document.n_ahead if self._is_whole(document) else 0
        for priority, lines in list(self._lines.items()):
            for client in [client for client, line in lines.items() if not line]:
                del lines[client]
            if not lines:
                del self._lines[priority]

    def is_full(self, client: Hashable = None, priority: int = 0) -> bool:
        """Whether another document of a client would not be looked at before the next step."""
        line = self._lines.get(priority, {}).get(client)
        if line is None:
            return False
        known = sum(document.n_ahead for document in line.seen if self._is_whole(document))
        return bool(line.unseen) or len(line.seen) >= WINDOW or known >= self._schedule.max_tokens_per_step

    def short_tokens(self, most: int) -> int:
        """Tokens of the short documents that have been read ahead, `most` or more once they are so many."""
        total = 0
        for line in self._all():
            for document in line.seen:
                total += document.n_ahead if self._is_short(document) else 0
                if total >= most:
                    return total
        return total

    def take_short(self, free: int) -> list[Document]:
        """Short documents, and others that fit whole, for `free` tokens; clients in turn."""
        taken: list[Document] = []
        for lines in self._by_priority():
            idle = 0
            while free > 0 and idle < len(lines):
                client = next(iter(lines))
                line = lines[client]
                fitting = [d for d in line.seen if self._is_whole(d) and d.n_ahead <= free]
                if not fitting:
                    idle += 1
                    lines[client] = lines.pop(client)
                    continue
                line.credit += QUANTUM
                while fitting and fitting[0].n_ahead <= min(line.credit, free):
                    document = fitting.pop(0)
                    line.seen.remove(document)
                    line.credit -= document.n_ahead
                    free -= document.n_ahead
                    taken.append(document)
                    idle = 0
                    fitting = [d for d in fitting if d.n_ahead <= free]
                if not any(self._is_whole(d) for d in line.seen):
                    line.credit = 0
                if free > 0 or not fitting:
                    lines[client] = lines.pop(client)  # its turn is over
        return taken

    def take_long(self, rows: int, held: dict[Hashable, int], *, all_waiting: bool) -> list[Document]:
        """Documents that need a state, for so many free rows; first those of clients that hold the fewest.

        held: rows that each client holds. all_waiting: whether documents that wait for their text may take rows too.
        """
        taken: list[Document] = []
        counts = dict(held)
        for lines in self._by_priority():
            while len(taken) < rows:
                choice = [(counts.get(client, 0), client, d) for client, d in self._first_long(lines, all_waiting)]
                if not choice:
                    break
                _, client, document = min(choice, key=lambda entry: entry[0])
                lines[client].seen.remove(document)
                counts[client] = counts.get(client, 0) + 1
                taken.append(document)
        return taken

    def wants_rows(self) -> dict[Hashable, int]:
        """Clients with documents that need a state, and how many have been read ahead."""
        wanted: dict[Hashable, int] = {}
        for lines in self._lines.values():
            for client, line in lines.items():
                n = sum(self._needs_row(document) for document in line.seen)
                if n:
                    wanted[client] = wanted.get(client, 0) + n
        return wanted

    def _first_long(self, lines: dict[Hashable, _Line], all_waiting: bool) -> Iterator[tuple[Hashable, Document]]:
        for client, line in lines.items():
            for document in line.seen:
                if self._needs_row(document) and (all_waiting or not self._waits(document)):
                    yield client, document
                    break

    def _is_whole(self, document: Document) -> bool:
        """Whether it can begin and end in one step, without a state of its own."""
        whole = document.ended and document.piece(self._schedule.vertical_chunk_size) == document.n_ahead
        return whole and not document.owns_state

    def _waits(self, document: Document) -> bool:
        return document.answer is Answer.WAITING and document.ready < self._schedule.vertical_chunk_size

    def _is_short(self, document: Document) -> bool:
        return self._is_whole(document) and document.n_ahead <= self._schedule.short_tokens

    def _needs_row(self, document: Document) -> bool:
        return not self._is_short(document) and document.ready > 0

    def _by_priority(self) -> Iterator[dict[Hashable, _Line]]:
        for priority in sorted(self._lines, reverse=True):
            yield self._lines[priority]

    def _all(self) -> Iterator[_Line]:
        for lines in self._lines.values():
            yield from lines.values()


def shares(documents: Sequence[Document], caps: Sequence[int], budget: int) -> list[int]:
    """Tokens of each document in a step of `budget`: equal parts for clients, and within a client for its documents,
    none above its cap. Those that went longest without a turn come first where there is not a token for each."""
    by_client: dict[Hashable, list[int]] = {}
    for number in sorted(range(len(documents)), key=lambda number: documents[number].last_step):
        by_client.setdefault(documents[number].client, []).append(number)
    groups = list(by_client.values())
    result = [0] * len(documents)
    for group, part in zip(groups, _divide(budget, [sum(caps[n] for n in group) for group in groups]), strict=True):
        for number, n in zip(group, _divide(part, [caps[number] for number in group]), strict=True):
            result[number] = n
    return result


def _divide(budget: int, caps: Sequence[int]) -> list[int]:
    """As equal parts as the caps allow."""
    result = [0] * len(caps)
    rest = budget
    for left, i in zip(range(len(caps), 0, -1), sorted(range(len(caps)), key=lambda i: caps[i]), strict=True):
        result[i] = min(caps[i], rest // left)
        rest -= result[i]
    for i in range(len(caps)):  # what is left of the division
        more = min(rest, caps[i] - result[i], 1)
        result[i] += more
        rest -= more
    return result
