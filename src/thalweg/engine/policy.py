"""Who takes part in the next step, and with how many tokens. Every decision about the order of work is here.

- **Long documents share.** Those in flight divide the step among clients, and each client's part among its documents;
  what one cannot use goes to the others.
- **Short before long.** Short documents (`Schedule.short_tokens`) that wait get half of a step at least, and all that
  long ones leave; they need no state, so that no number of long documents keeps them waiting.
- **Short steps in company.** While short documents come beside those of other clients, and a little longer, long ones
  take no more of a step than short ones do, or `COMPANY_TOKENS`: a query does not wait for a full step of somebody's
  book. Long documents alone, whoever's they are, fill their steps.
- **Fair among clients.** Clients take turns (deficit round robin): each turn is worth `QUANTUM` tokens, and what a
  client does not use while it has documents waiting is kept for its next turn. A client that adds thousands of texts
  takes nothing from another's turn.
- **Priority** is strict: among documents that wait, those of a higher one come first.

What a document costs others is bounded: a step has at most `vertical_chunk_size` tokens of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from thalweg.engine.document import Document
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer
from thalweg.models.protocol import State

QUANTUM = 256
"""Tokens of a client's turn."""

COMPANY_TOKENS = 48
"""Tokens of all long documents in a step while short ones of another client come and go: those would wait for the rest
of the step under way and for a step of their own."""

PATIENCE = 256
"""Steps for which that lasts after the last of them."""

WINDOW = 32
"""Long documents of a client that are looked at ahead of their turn, so that one without a free state does not stop the
short ones behind it."""

MOST_SHARING = 256
"""Tokens up to which a document that begins with a shared state is short: a copy of the state costs less than what a
step leaves free where longer ones do not fit."""

MOST_KINDS = 16
"""Different states that short documents begin with up to which more of them are looked ahead."""


@dataclass
class _Line:
    """One client's documents of one priority, each kind in the order in which they came.

    short: those that begin and end in one step, without a state; long: others that have been read ahead; unseen: those
    that have not; known: tokens of the short ones, by the state that they begin with.
    """

    short: dict[Document, None] = field(default_factory=dict)
    long: dict[Document, None] = field(default_factory=dict)
    unseen: deque[Document] = field(default_factory=deque)
    known: Counter[int] = field(default_factory=Counter)
    credit: int = 0

    def __bool__(self) -> bool:
        return bool(self.short or self.long or self.unseen)

    def __len__(self) -> int:
        return len(self.short) + len(self.long) + len(self.unseen)

    def add_short(self, document: Document) -> None:
        """Take in a document that has been read ahead whole."""
        self.short[document] = None
        self._count(document, 1)

    def _count(self, document: Document, sign: int) -> None:
        self.known[id(document.start)] += sign * document.n_ahead
        if not self.known[id(document.start)]:
            del self.known[id(document.start)]

    def remove(self, document: Document) -> None:
        """Forget a document, which may be here or not."""
        if document in self.short:
            del self.short[document]
            self._count(document, -1)
        elif document in self.long:
            del self.long[document]
        elif document in self.unseen:
            self.unseen.remove(document)


class _Starts:
    """The states that short documents of a step begin with, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.states: list[State] = []

    def have(self, document: Document) -> bool:
        """Whether the document's is one of them, or there is room for it."""
        state = document.start
        return state is None or len(self.states) < self._most or any(state is each for each in self.states)

    def add(self, document: Document) -> None:
        state = document.start
        if state is not None and not any(state is each for each in self.states):
            self.states.append(state)


class Pending:
    """Documents that have not begun, in the order in which they are to begin.

    Args:
        schedule: the bounds.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._lines: dict[int, dict[Hashable, _Line]] = {}  # by priority, by client: the first client's turn is next

    def __len__(self) -> int:
        return sum(len(line) for line in self._all())

    def add(self, document: Document, *, first: bool = False) -> None:
        """Behind the others of its client and priority, or before them."""
        line = self._lines.setdefault(document.priority, {}).setdefault(document.client, _Line())
        if first:
            line.unseen.appendleft(document)
        else:
            line.unseen.append(document)

    def put_back(self, document: Document) -> None:
        """A document of `take_long` that had no token in the step is the first of its line again."""
        line = self._lines.setdefault(document.priority, {}).setdefault(document.client, _Line())
        line.long = {document: None, **line.long}

    def remove(self, document: Document) -> None:
        """Forget a document, which may be here or not."""
        line = self._lines.get(document.priority, {}).get(document.client)
        if line is not None:
            line.remove(document)

    def read(self, look_ahead: Callable[[Document], bool]) -> None:
        """Look ahead in the documents whose turn may come in the next step.

        look_ahead: reads the beginning of a document; False where it is not to be kept (it has failed or must wait).
        """
        for line in self._all():
            while line.unseen and not self._is_read(line):
                document = line.unseen.popleft()
                if not look_ahead(document):
                    continue
                if self._is_short(document):
                    line.add_short(document)
                else:
                    line.long[document] = None
        for priority, lines in list(self._lines.items()):
            for client in [client for client, line in lines.items() if not line]:
                del lines[client]
            if not lines:
                del self._lines[priority]

    def has_turn(self, document: Document) -> bool:
        """Whether a document has been read, and no document that is read later can take the state that it needs."""
        line = self._lines.get(document.priority, {}).get(document.client, _Line())
        return document in line.short or (document in line.long and not self._waits(document))

    def is_full(self, client: Hashable = None, priority: int = 0) -> bool:
        """Whether another document of a client would not be looked at before the next step."""
        line = self._lines.get(priority, {}).get(client)
        return line is not None and (bool(line.unseen) or self._is_read(line))

    def short_tokens(self, most: int) -> int:
        """Tokens of the short documents that have been read ahead, at most `most`."""
        return min(most, sum(line.known.total() for line in self._all()))

    def take_short(self, free: int) -> tuple[list[Document], list[State]]:
        """Short documents for `free` tokens, clients in turn; and the states that they begin with."""
        taken: list[Document] = []
        starts = _Starts(self._schedule.max_shared)
        for lines in self._by_priority():
            idle, blocked = 0, {}
            while free > 0 and idle < len(lines):
                client = next(iter(lines))
                line = lines[client]
                before = free
                free = self._turn(line, free, taken, starts)
                fits = any(document.n_ahead <= free and starts.have(document) for document in line.short)
                idle = idle + 1 if free == before and not fits else 0
                if free > 0 or not fits:
                    lines[client] = lines.pop(client)  # its turn is over
                if not all(starts.have(document) for document in line.short):
                    blocked[client] = line
            if blocked:  # they are the first to choose the next step's states
                others = {client: lines.pop(client) for client in list(lines)}
                lines |= blocked | {client: line for client, line in others.items() if client not in blocked}
        return taken, starts.states

    def _turn(self, line: _Line, free: int, taken: list[Document], starts: _Starts) -> int:
        """One turn of a client: what fits of its short documents, for its credit. Returns the tokens that are left."""
        line.credit += QUANTUM
        for document in list(line.short):
            if document.n_ahead > line.credit or free == 0:
                break
            if document.n_ahead > free or not starts.have(document):
                continue  # one behind it may fit
            starts.add(document)
            line.remove(document)
            line.credit -= document.n_ahead
            free -= document.n_ahead
            taken.append(document)
        if not line.short:
            line.credit = 0
        return free

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
                lines[client].remove(document)
                counts[client] = counts.get(client, 0) + 1
                taken.append(document)
        return taken

    def wants_rows(self) -> dict[Hashable, int]:
        """Clients with documents that need a state, and how many have been read ahead."""
        wanted: dict[Hashable, int] = {}
        for lines in self._lines.values():
            for client, line in lines.items():
                if line.long:
                    wanted[client] = wanted.get(client, 0) + len(line.long)
        return wanted

    def _first_long(self, lines: dict[Hashable, _Line], all_waiting: bool) -> Iterator[tuple[Hashable, Document]]:
        for client, line in lines.items():
            for document in line.long:
                if all_waiting or not self._waits(document):
                    yield client, document
                    break

    def _is_read(self, line: _Line) -> bool:
        """Whether enough of a client's documents are known for the next step. Of those that begin with different states
        each kind should fill it, up to some."""
        kinds = min(max(1, len(line.known)), MOST_KINDS)
        return len(line.long) >= WINDOW or line.known.total() >= kinds * self._schedule.max_tokens_per_step

    def _is_short(self, document: Document) -> bool:
        """Whether it begins and ends in one step, without a state of its own, and may be sure of room for that."""
        most = self._schedule.short_tokens if document.start is None else min(self._schedule.short_tokens, MOST_SHARING)
        return document.ended and not document.owns_state and document.piece(most) == document.n_ahead

    def _waits(self, document: Document) -> bool:
        return document.answer is Answer.WAITING and document.ready < self._schedule.vertical_chunk_size

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
