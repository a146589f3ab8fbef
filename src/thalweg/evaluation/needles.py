"""Needle and passkey retrieval at any length, built as LongEmbed's two synthetic tasks are (arXiv 2404.12096).

A task has documents of one length and queries for half of them. All documents are the same stretch of books; in each,
at a depth of its own, stands one sentence that no other has, and a query asks for it. So nothing but that sentence
tells documents apart. A passkey belongs to a person by name ("What is the pass key for …?"); a needle is a fact in
other words than its question. The same seed gives the same texts.

Lengths are in tokens of `BYTES_PER_TOKEN` bytes, so that they are the same documents for every model.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from thalweg.errors import InvalidInputError
from thalweg.evaluation.lengths import BYTES_PER_TOKEN
from thalweg.system.words import counted

Kind = Literal["needle", "passkey"]

LENGTHS = tuple(256 * 4**i for i in range(7))
"""256 to 1,048,576 tokens."""

_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z\"“])")
_WORDS = {
    "first names": "Ada Boris Clara Dmitri Esther Farid Greta Hugo Ingrid Jonas Keiko Lars Miriam Nadia Otto Paloma",
    "last names": "Abernathy Brandt Castellano Duval Eriksen Fairweather Gallagher Holloway Ivanov Jankowski Kowalczyk",
    "places": "Alder Bracken Cold Dun East Fenn Garrow Hallow Inch Kestrel",
    "endings": "wick hall harbour mere bury holm by field ford moor",
}
_FACTS = (
    ("The best thing to do in {} is to {}.", "What should a visitor to {} do?"),
    ("The mayor of {} is known for having decided to {}.", "What did the head of the town of {} make a name with?"),
    ("Every winter the schoolchildren of {} {}.", "What do pupils do in {} when it gets cold?"),
    ("In {} it is forbidden by law to {}.", "What is not allowed in {}?"),
    ("The old ferryman of {} taught his dog to {}.", "Which trick did the boatman's animal learn in {}?"),
)
_DEEDS = (
    "eat a peach on the clock tower",
    "paint the bridges blue",
    "race wooden boats down the mill stream",
    "plant walnut trees along the harbour",
    "ring all the bells at noon",
    "sell honey from a cart",
    "fly kites over the salt works",
    "carve owls out of chalk",
    "bake bread shaped like a ship",
    "sleep in the lighthouse",
    "count the swans by lantern light",
    "wear yellow gloves to market",
)


@dataclass(frozen=True)
class Haystacks:
    """The documents and queries of one task.

    kind: "needle" or "passkey"; length: of a document, in tokens; books: texts the hay is taken from; documents,
    queries: how many (LongEmbed: 100 and 50); seed: another one gives other sentences at other places.

    Raises:
        InvalidInputError: a number out of range, or no book.
    """

    kind: Kind
    length: int
    books: Sequence[str]
    documents: int = 100
    queries: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 64:
            raise InvalidInputError(f"a document needs at least 64 tokens to hide a sentence in, got {self.length}")
        if not 1 <= self.queries <= self.documents <= 100:
            raise InvalidInputError(
                f"there must be 1 to 100 documents and 1 query for each at most, got "
                f"{counted(self.documents, 'document')} and {counted(self.queries, 'query', 'queries')}"
            )
        if not any(book.strip() for book in self.books):
            raise InvalidInputError("needle and passkey tasks need a book with text in it")

    @property
    def revision(self) -> str:
        """16 hexadecimal digits of all that the texts depend on."""
        books = [hashlib.sha256(book.encode()).hexdigest() for book in self.books]
        settings = [self.kind, self.length, self.documents, self.queries, self.seed, books, self.pairs()]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def pairs(self) -> list[tuple[str, str]]:
        """The sentence hidden in each document, and its question."""
        rng = random.Random(f"{self.seed} {self.kind} {self.length}")
        return (_needles if self.kind == "needle" else _passkeys)(rng, self.documents)

    def texts(self) -> Iterator[str]:
        """The documents, one at a time, each `length` * BYTES_PER_TOKEN bytes long to within a word."""
        rng = random.Random(f"{self.seed} {self.kind} {self.length} depth")
        hay = _hay(self.books, self.length * BYTES_PER_TOKEN)
        ends = [0, *(match.start() for match in _SENTENCE_END.finditer(hay))]
        for needle, _ in self.pairs():
            room = self.length * BYTES_PER_TOKEN - len(needle.encode()) - 2
            place = ends[bisect.bisect_right(ends, rng.random() * len(_cut(hay, room))) - 1]
            before, after = hay[:place], hay[place:].lstrip()
            rest = _cut(after, room - len(before.encode()))
            yield " ".join(part for part in (before, needle, rest) if part)

    def questions(self) -> Iterator[tuple[int, str]]:
        """The number of the document that is sought, and the question."""
        chosen = random.Random(f"{self.seed} {self.kind} {self.length} queries").sample(
            range(self.documents), self.queries
        )
        pairs = self.pairs()
        yield from ((number, pairs[number][1]) for number in sorted(chosen))


def _passkeys(rng: random.Random, n: int) -> list[tuple[str, str]]:
    names = rng.sample([f"{first} {last}" for first, last in product(_words("first names"), _words("last names"))], n)
    keys = rng.sample(range(10_000, 100_000), n)
    return [
        (
            f"The pass key for {name} is {key}. Remember it. {key} is the pass key for {name}.",
            f"What is the pass key for {name}?",
        )
        for name, key in zip(names, keys, strict=True)
    ]


def _needles(rng: random.Random, n: int) -> list[tuple[str, str]]:
    places = rng.sample([place + ending for place, ending in product(_words("places"), _words("endings"))], n)
    chosen = [(*rng.choice(_FACTS), place) for place in places]
    return [(fact.format(place, rng.choice(_DEEDS)), question.format(place)) for fact, question, place in chosen]


def _words(kind: str) -> list[str]:
    return _WORDS[kind].split()


def _hay(books: Sequence[str], n_bytes: int) -> str:
    """The books one after the other, white space made plain; from the first again where they are too short."""
    plain = [" ".join(book.lstrip("\ufeff").split()) for book in books]
    parts: list[str] = []
    total = 0
    while total < n_bytes:
        for book in plain:
            parts.append(book)
            total += len(book.encode()) + 1
            if total >= n_bytes:
                break
    return _cut(" ".join(parts), n_bytes)


def _cut(text: str, n_bytes: int) -> str:
    """At most so many bytes, ending with a whole word."""
    head = text.encode()[: max(0, n_bytes)].decode("utf-8", "ignore")
    return head if len(head) == len(text) else head.rpartition(" ")[0]
