"""Documents of any length that differ in one sentence."""

from __future__ import annotations

import pytest

from thalweg.errors import InvalidInputError
from thalweg.evaluation.lengths import BYTES_PER_TOKEN
from thalweg.evaluation.needles import Haystacks, Kind

from .tiny import BOOK

BOOKS = ["\ufeff" + BOOK.replace(" ", "\n  ") * 3, "Élan vital! It rose… “Go on.” " * 40]


@pytest.mark.parametrize("kind", ["needle", "passkey"])
@pytest.mark.parametrize("length", [64, 257, 5000])
def test_documents_have_the_length_and_differ_in_one_sentence(kind: Kind, length: int) -> None:
    haystacks = Haystacks(kind, length, BOOKS, documents=30, queries=7)
    texts, needles = list(haystacks.texts()), [needle for needle, _ in haystacks.pairs()]
    assert len(texts) == len(set(needles)) == 30
    longest_word = max(len(word.encode()) for book in BOOKS for word in book.split())
    for text, needle in zip(texts, needles, strict=True):
        assert 0 <= length * BYTES_PER_TOKEN - len(text.encode()) <= longest_word + 2
        assert [other for other in needles if other in text] == [needle]
    hay = [text.replace(needle, "").split() for text, needle in zip(texts, needles, strict=True)]
    shortest = min(map(len, hay))
    assert all(words[:shortest] == hay[0][:shortest] for words in hay)
    assert max(map(len, hay)) - shortest < 40, "a needle takes the room of a few words"


@pytest.mark.parametrize("kind", ["needle", "passkey"])
def test_needles_stand_at_all_depths(kind: Kind) -> None:
    haystacks = Haystacks(kind, 5000, BOOKS)
    depths = [
        text.index(needle) / len(text) for text, (needle, _) in zip(haystacks.texts(), haystacks.pairs(), strict=True)
    ]
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        assert sum(low <= depth < low + 0.2 for depth in depths) >= 5


@pytest.mark.parametrize("kind", ["needle", "passkey"])
def test_questions_ask_for_one_document_and_do_not_hold_the_answer(kind: Kind) -> None:
    haystacks = Haystacks(kind, 256, BOOKS)
    asked = list(haystacks.questions())
    assert len(asked) == len({number for number, _ in asked}) == len({question for _, question in asked}) == 50
    for number, question in asked:
        needle = haystacks.pairs()[number][0]
        assert question not in needle
        names = [word for word in question.rstrip("?").split()[1:] if word.istitle()]
        assert names, question
        holders = [i for i, (text, _) in enumerate(haystacks.pairs()) if all(name in text for name in names)]
        assert holders == [number]


def test_the_seed_decides_everything() -> None:
    same = [list(Haystacks("needle", 300, BOOKS, seed=3).texts()) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != list(Haystacks("needle", 300, BOOKS, seed=4).texts())


def test_the_revision_follows_all_that_matters() -> None:
    base = Haystacks("needle", 300, BOOKS)
    others = [
        Haystacks("passkey", 300, BOOKS),
        Haystacks("needle", 301, BOOKS),
        Haystacks("needle", 300, BOOKS[:1]),
        Haystacks("needle", 300, BOOKS, documents=99),
        Haystacks("needle", 300, BOOKS, queries=49),
        Haystacks("needle", 300, BOOKS, seed=1),
    ]
    assert len({haystacks.revision for haystacks in (base, *others)}) == 7
    assert base.revision == Haystacks("needle", 300, list(BOOKS)).revision


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"length": 63}, "63"),
        ({"documents": 101}, "101"),
        ({"documents": 10, "queries": 11}, "11"),
        ({"queries": 0}, "0 queries"),
        ({"books": ["", " "]}, "book"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], words: str) -> None:
    settings: dict[str, object] = {"kind": "needle", "length": 256, "books": BOOKS, **wrong}
    with pytest.raises(InvalidInputError, match=words):
        Haystacks(**settings)  # type: ignore[arg-type]
