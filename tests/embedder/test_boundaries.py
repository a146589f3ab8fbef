"""Boundaries are those of the whole text however it arrives, in bounded memory; the rules by example; positions given.

In the examples | stands where a section begins.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from thalweg import InvalidInputError, assets
from thalweg.embedder.boundaries import (
    Boundaries,
    By,
    Given,
    from_callable,
    make_boundaries,
    restore_boundaries,
)
from thalweg.embedder.headings import LONGEST_LINE, Headings
from thalweg.embedder.paragraphs import BLANK

KINDS: tuple[By, ...] = get_args(By)
OPEN = 2 * LONGEST_LINE + 20
"""Characters that may wait for a decision: a line and its underline, each as long as is looked at."""


def boundaries_of(by: By | Iterable[int], pieces: Iterable[str], every: int = 1) -> list[int]:
    found = make_boundaries(by, every)
    return [*itertools.chain.from_iterable(map(found.push, pieces)), *found.finish()]


def sections(by: By, text: str, every: int = 1) -> list[str]:
    edges = [0, *boundaries_of(by, [text], every), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def marked(by: By, example: str) -> tuple[list[str], list[str]]:
    """The sections that are found in an example, and those that it states."""
    return sections(by, example.replace("|", "")), example.split("|")


PARTS = [
    *"abxyzABIX 1\n\n\r\t\f.!?…,:;-—#*_`~=\"'“”„»«()[]。！？．「」،؟।天क\u200b\u2028\u2029\u00a0",
    *[
        "\r\n",
        "\n\n",
        ". ",
        '." ',
        " »",
        "« ",
        "[1]",
        "3.14",
        "Dr.",
        "No.",
        "U.S.",
        "3. ",
        "Oktober",
        "Jan",
        "...",
        "e.g.",
    ],
    *[
        "# ",
        "## b\n",
        "===",
        "\n---\n",
        "```",
        "~~~\n",
        "\n\nCHAPTER I\n\n",
        "\n\nPart 2: Ab\n",
        "§ 3",
        "II.",
        "3.2 Results",
    ],
    *[" " * 70, "\t" * 60, "\n" * 70, " " * 250, "x" * 250, "=" * 210, ")" * 9, "." * 9, "word " * 20],
]
TEXTS = (
    st.integers(0, 60).flatmap(lambda least: st.lists(st.sampled_from(PARTS), min_size=least, max_size=80)).map("".join)
)


@given(TEXTS, st.data())
@examples(500)
def test_any_cutting_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    for by in KINDS:
        whole = boundaries_of(by, [text])
        assert boundaries_of(by, pieces) == whole
        assert boundaries_of(by, text) == whole
        assert all(section.strip(BLANK) for section in sections(by, text)) or not text.strip(BLANK)
        assert all(text[position] not in BLANK for position in whole)


@given(TEXTS, st.integers(1, 7), st.sampled_from(KINDS))
@examples(300)
def test_nothing_comes_before_what_was_settled_and_little_waits(text: str, size: int, by: By) -> None:
    found = make_boundaries(by)
    for start in range(0, len(text), size):
        settled = found.settled
        assert all(position >= settled for position in found.push(text[start : start + size]))
        assert min(start + size, len(text)) - found.settled <= OPEN
        assert len(json.dumps(found.state())) < 4000
    settled = found.settled
    assert all(position >= settled for position in found.finish())


@given(TEXTS, st.integers(0, 400), st.sampled_from(KINDS), st.integers(1, 3))
@examples(300)
def test_copies_and_restored_states_go_on_by_themselves(text: str, cut: int, by: By, every: int) -> None:
    first = make_boundaries(by, every)
    found = first.push(text[:cut])
    copied, state = first.copy(), json.dumps(first.state())
    first.push("Another. Text\n\n# follows here\n\n")
    for other in (copied, restore_boundaries(json.loads(state))):
        assert found + other.push(text[cut:]) + other.finish() == boundaries_of(by, [text], every)


@given(TEXTS, st.integers(1, 5), st.sampled_from(KINDS))
def test_every_nth_boundary_ends_a_section_of_n_units(text: str, every: int, by: By) -> None:
    assert boundaries_of(by, [text], every) == boundaries_of(by, [text])[every - 1 :: every]


ENDLESS = {
    "letters": "x",
    "spaces": " ",
    "blank lines": "\n",
    "Windows line ends": "\r\n",
    "full stops": ".",
    "ends and brackets": ".)",
    "quotes": '"',
    "opening brackets after an end": "a. ((((((((((((",
    "words": "some words ",
    "a word and spaces": "a" + " " * 5000,
    "rules": "=",
    "numbers": "[1]",
    "marks of width zero": "\u200b",
    "fences": "`",
}


@pytest.mark.parametrize("unit", ENDLESS.values(), ids=list(ENDLESS))
@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("length", [300_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_a_text_without_boundaries_is_not_collected(length: int, by: By, unit: str) -> None:
    """After characters that may begin a section and need to be followed."""
    found = make_boundaries(by)
    found.push("Some words before. They end.\n\nCHAPTER I: The End.")
    piece = unit * (100_000 // len(unit))
    for _ in range(length // len(piece)):
        found.push(piece)
        assert len(json.dumps(found.state())) < 3000


@pytest.mark.parametrize(
    "example",
    [
        "One.\n\n|Two.\n \t \n|Three\nand its second line.\n\n\n\n\n|Four",
        "\n\n \nOne.\n\n|Two.\n\n",
        "One.\r\n\r\n|Two\r\nlines.\r\n \r\n|Three",
        "One.\r\r|Two\rlines.",
        "One\u2029|Two\u2028line\u2028\u2028|Three\f|Four\v\v|Five\x85\x85|Six",
        "One\n\u200b\n|Two\n\ufeff\u00a0\u3000\n|Three",
        "第一段。\n\n|第二段。",
        "- a\n- b\n\n|```\ncode\n\n|more code\n```",
        "One\n\n   |indented",
        "",
        " \n\n \n",
        "\ufeff\n\nOne",
    ],
)
def test_paragraphs(example: str) -> None:
    found, stated = marked("paragraph", example)
    assert found == stated


SENTENCES = [
    # Ends, and what closes after them.
    "One. |Two! |Three? |Four?! |Five!!! |Six… |Seven",
    "He said “Yes.” |Then he left. |(It was late.) |**Bold.** |_So._ |“No.” |‘Why?’ |He went.",
    '"Stop!" |She ran. |"Now?" |"Yes."',
    "First.[1] |Second.[2][13] |Third (below). |Fourth [sic]. |Fifth",
    "A long pause . . . |Then nothing. . . . |Then all.",
    # A lower-case letter, or what only goes on.
    "“Why?” he asked. |“Because!” cried she. |Wait... what? |Wait... |What?",
    "The U.S. troops (approx. three) left. |It cost 3.14 or 1.000,5. |See v1.2.3 of it. |Go to example.com now.",
    "Yahoo! (the company) grew. |He left (why?), and so did she. |It rose (2.), then fell.",
    # Words with a full stop.
    "Mr. Smith and Dr. Jones met St. John vs. Prof. X at Mt. Hood, e.g. Monday, i.e. Today, etc.",
    "J. K. Rowling and J.R.R. Tolkien wrote. |George W. Bush read.",
    "See Fig. 3, No. 5 and pp. 7 of Vol. 2 on Jan. 3. |Is it so? |No. |It is not.",
    "It began at 5 p.m. |The bell rang. |I don't. |He didn't. |That--Mr. Brown said--is all.",
    # Lists and lines.
    "1. First item.\n|2. Second item.\n  |13. Another. |It goes on.\n|- A dash.\n|* a star\n* another",
    "A title\n\n|A sentence\nover two lines. |Another\n\n|The last",
    "Hello.\r\n|World.\r\n\r\n|No end\r\n\r\n|Next",
    "```\nx = a.b(c)\ny = 1.5\n```\n\n|After the code.",
    "Page one goes on\f|here.",
    "  \n Leading blank space. |Then text.  \n ",
    # Dialogue and other languages.
    "— Hello. |— Who is there? |— Me.",
    "Er sagte: „Das ist z. B. gut.“ |Dann ging er, d. h. Er lief. |Am 3. Oktober kam Hr. Meier.",
    "»Ja.« |»Hallo!« rief er. |»Wer?« |Er ging. |»Ich.«",
    "« Bonjour. » |Il partit. |« Quoi ? » dit-elle. |M. Dupont et Mme. Durand\u00a0! |Oui.",
    "«\u00a0Non.\u00a0» |Fin. |«Oui.» |Fin.",
    "¿Qué? |¡Hola! |El Sr. García vino. |¿Y tú?",
    "«Стой!» — сказал он. |Пришёл А. С. Пушкин. |— Да. |— Нет.",
    "他走了。|“你好！”|她说：「天气好？！」|是的……我们走吧。|π是３．１４。|「好。」|iPhone很贵。",
    "これはペンです。|「行こう！」|はい。 |ええ。\n|うん",
    "مرحبا بكم. |كيف حالك؟ |أنا بخير، شكرا! |نعم",
    "یہ کتاب ہے۔ |وہ گیا۔",
    "राम घर गया। |वह खुश था॥ |क्या तुम आओगे? |हाँ।",
    "გამარჯობა. |როგორ ხარ?",
    "Cafe\u0301s. |He wrote Cafe\u0301s. |Then",
    # What the docstring says goes wrong.
    "He moved to the U.S. She stayed. |So did I. He left.",
    "It rose. iPhone sales fell.",
    "der 2. |Weltkrieg",
    "The end." + ")" * 9 + " Not found",
]


@pytest.mark.parametrize("example", SENTENCES)
def test_sentences(example: str) -> None:
    found, stated = marked("sentence", example)
    assert found == stated


def test_a_boundary_is_given_as_soon_as_it_is_decided() -> None:
    found = make_boundaries("sentence")
    decided = {char: positions for char in "One. Two? “No.” (" if (positions := found.push(char))}
    assert decided == {"T": [5], "N": [10]}
    assert found.settled == 16
    assert found.push("X") == [16]
    assert found.settled == 18


HEADINGS = [
    # Markdown
    "# One\ntext\n|## Two\n|###### Six\n|#\ntext\n####### seven\n#hashtag\n    # code\n\t# code\n   |# Three",
    "Intro\n\n|Title\n=====\n\ntext\n\n|Sub title\n---\ntext\n\n---\n\ntext",
    "Text\n|Under text\n====\na paragraph\nof two lines\n---\nmore",
    "Text\n\n|======\nTitle\n======\ntext\n\n|-----\nTitle\n-----\n\ntext",
    "---\ntitle: x\nauthor: y\n---\n\ntext\n|# One",
    "One\n```python\n# comment\n\nCHAPTER I\n\n~~~\n```\n|# Two",
    "One\n~~~~\n# code\n```\n~~~\n# code\n~~~~\n|# Three\n```\n# open",
    "One\n\n```inline``` code\n\n|# Two",
    "Intro\n\n|Title\n===\n|Sub title\n---\n\n|# One\n|Two\n---\ntext",
    "# Title\n|## Under it\n\n|### And that\ntext",
    "One\r\n|# Two\r\nText\r\n\r\n|Three\r\n===\r\n\r\ntext\r\n\r\n|CHAPTER IV\r\n\r\ntext",
    # Books and papers
    "\n\n  CHAPTER I.\n\nText\n\n   |CHAPTER II. Down the Hole.\n\nText",
    "Front\n\n|Chapter 12: The Storm\n\nText\n\n|Chapter 3 - A Cub\n\nText",
    "Front\n\n|PART TWO\n\nText\n\n|BOOK THE FIRST",
    "Front\n\n|Section 4\n\nText\n\n|§ 12\n\n|Appendix B\n\n|Act V The End\n\nText",
    "Front\n\n|I.\n\nText\n\n|12.\n\nText\n\n|XIV\n\nText\n\n12\n\n|3.2 Results\n\nText\n\n|4. Discussion\n\n|5 Ende",
    "Front\n\n|THE STORM\n\nText\n\n|PREFACE.\n\nText\n\n|Introduction\n\nText\n\n|_EPILOGUE_\n\nText",
    "Front\n\n|CHAPTER V\nThe title\n\nText\f|CHAPTER VI\fText",
    "Vorn\n\n|Kapitel 3\n\nText\n\n|Erstes Kapitel\n\n|2. Teil",
    "Texte\n\n|Chapitre premier\n\n|Capítulo 4. Fin\n\n|Глава 5\n\nText",
    "前言\n\n|第一章\n\n他走了。\n\n|第12节 天气\n\n好。\n\n|제3장\n\n|الفصل الأول\n\n|अध्याय 2\n\n.",
    # No headings
    "CHAPTER I.\nText\nChapter 2: in a text\n\nPart I of it was read.\n\nChapter by chapter\n\nText",
    "Text\nTHE STORM\n\nText\n\nTHE STORM\nText\n\n'STOP!'\n\nSTOP!\n\nWHY?\n\nA.B.\n\n* * *",
    "Text\n\n3.2 metres\n\n3.2 He left.",
    "Text\n\n" + "LONG " * 17 + "\n\n" + "Title" * 50 + "\n=====\n",
    "Text\n\n2024 was good\n\n12. he left\n\n1984.\n\nText",
    # What the docstring says goes wrong.
    "Text\n\nDown the Rabbit-Hole\n\nText\n\n|1. Buy milk\n\n|2. Buy eggs\n\n|5 June 1882\n\nText\n\n|LADIES\n\nText",
]


@pytest.mark.parametrize("example", HEADINGS)
def test_headings(example: str) -> None:
    found, stated = marked("heading", example)
    assert found == stated


@pytest.mark.parametrize("example", [*SENTENCES, *HEADINGS])
def test_any_cutting_of_the_examples_gives_the_same(example: str) -> None:
    text = example.replace("|", "")
    for by in KINDS:
        whole = boundaries_of(by, [text])
        assert boundaries_of(by, text) == whole
        for cut in range(1, len(text)):
            assert boundaries_of(by, [text[:cut], text[cut:]]) == whole


@pytest.mark.parametrize("before", ["\r\n", "  \r\n", "\n \n", "\r \r", "\n\n", "  \f", "  "])
@pytest.mark.parametrize(
    "text", ["One{}Two", "One.{}two", "{}1. One", "One{}1. Two", "THE ONE{}Two", "One{}THE TWO\n\n3"]
)
def test_long_blank_space_is_kept_as_what_it_is(text: str, before: str) -> None:
    for length in [*range(58, 72), *range(195, 205)]:
        example = text.format(before + " " * length)
        for by in KINDS:
            assert boundaries_of(by, example) == boundaries_of(by, [example])


def test_lines_are_looked_at_up_to_their_bound() -> None:
    spaces = " " * LONGEST_LINE
    for example in (
        f"Text\n\nCHAPTER I{spaces}\n\nText",  # longer than a heading may be, with the blank space at its end
        f"Text\n\n|THE STORM\n{spaces}which goes on",  # so much blank space is a blank line
        f"Text\n|# Title {'x' * 1000}\nText",
        f"Text\n\n{spaces}|THE STORM\n\nText",
    ):
        found, stated = marked("heading", example)
        assert found == stated


BOOK = assets.book().read_text(encoding="utf-8")


def test_the_chapters_of_the_book_are_found() -> None:
    """And eight lines in capitals: titles of tales in it, and what is written on a cross."""
    first_lines = [section.split("\n", 1)[0] for section in sections("heading", BOOK)]
    chapters = [line for line in first_lines if line.startswith("Chapter ")]
    assert [int(line.split()[1]) for line in chapters] == list(range(1, 61))
    others = [line for line in first_lines if line not in chapters]
    assert len(others) == 8
    assert all(line.isupper() for line in others)


def test_the_units_of_the_book_have_sensible_sizes() -> None:
    paragraphs, sentences = sections("paragraph", BOOK), sections("sentence", BOOK)
    assert len(paragraphs) == sum(1 for line in BOOK.split("\n") if line.strip())
    assert 6000 < len(sentences) < 6300
    lengths = [len(sentence) for sentence in sentences]
    assert 70 < np.median(lengths) < 110
    assert set(boundaries_of("paragraph", [BOOK])) <= set(boundaries_of("sentence", [BOOK]))
    assert set(boundaries_of("heading", [BOOK])) <= set(boundaries_of("paragraph", [BOOK]))
    assert len(sections("sentence", BOOK, every=5)) == -(-len(sentences) // 5)


def test_given_boundaries_come_when_the_text_has_passed_them() -> None:
    found = Given([2, 5, 6, 9])
    assert [found.push(piece) for piece in ("ab", "c", "", "def", "ghij")] == [[], [2], [], [5], [6, 9]]
    assert found.finish() == []
    assert boundaries_of([2, 5, 6, 9], ["abcdefghij"], every=2) == [5, 9]
    assert boundaries_of([], ["abc"]) == []


@pytest.mark.parametrize(
    "positions", [np.array([1, 3]), (1, 3), pd.Series([1, 3]), {1: "a", 3: "b"}.keys(), range(1, 4, 2)]
)
def test_any_collection_of_whole_numbers_is_taken(positions: Any) -> None:
    found = boundaries_of(positions, ["abcd"])
    assert found == [1, 3]
    assert {type(position) for position in found} == {int}


def test_an_iterator_is_read_one_position_ahead() -> None:
    read = []

    def positions() -> Iterator[int]:
        for position in itertools.count(10, 10):
            read.append(position)
            yield position

    found = make_boundaries(positions())
    assert found.push("x" * 25) == [10, 20]
    assert read == [10, 20, 30]
    for use in (found.copy, found.state):
        with pytest.raises(InvalidInputError, match=r"from an iterator cannot be \w+; give them as a list"):
            use()


def test_given_boundaries_can_be_copied_and_saved() -> None:
    first = Given([2, 5, 6, 9], every=2)
    first.push("abc")
    copied, state = first.copy(), json.dumps(first.state())
    assert first.push("defghij") == [5, 9]
    for other in (copied, restore_boundaries(json.loads(state))):
        assert [other.push(piece) for piece in ("def", "ghij")] == [[5], [9]]
        assert other.finish() == []


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([1, 2.0], r"boundaries\[1\] must be a whole number, got 2.0"),
        ([True], r"boundaries\[0\] must be a whole number, got True"),
        (np.array([1.0]), r"boundaries\[0\] must be a whole number, got np.float64\(1.0\)|got 1.0"),
        (["1"], r"boundaries\[0\] must be a whole number, got '1'"),
        ([None], r"boundaries\[0\] must be a whole number, got None"),
        ([0, 2], r"boundaries\[0\] must be at least 1, got 0"),
        ([-1], r"boundaries\[0\] must be at least 1, got -1"),
        ([2, 2], r"must ascend, got 2 after 2 \(boundaries\[1\]\); sort them"),
        ([3, 2], r"must ascend, got 2 after 3"),
        ([2, 4], "inside the text, which has 4 characters, got 4; leave out the end"),
        ([2, 9], "inside the text, which has 4 characters, got 9"),
    ],
)
@pytest.mark.parametrize("kind", [list, iter])
def test_given_boundaries_that_cannot_be_are_refused(positions: Any, message: str, kind: Any) -> None:
    with pytest.raises(InvalidInputError, match=message):
        boundaries_of(kind(positions), ["ab", "cd"])
    with pytest.raises(InvalidInputError, match=message):
        from_callable(lambda text: kind(positions), "abcd")


def test_a_function_is_called_once_with_the_whole_text() -> None:
    calls = []

    def find(text: str) -> Iterator[np.int64]:
        calls.append(text)
        yield from np.array([2, 4, 6])

    found = from_callable(find, "abcdefgh", every=2)  # type: ignore[arg-type]
    assert calls == ["abcdefgh"]
    assert found.push("abcdefgh") + found.finish() == [4]
    with pytest.raises(InvalidInputError, match="must return whole numbers, got 5"):
        from_callable(lambda text: 5, "abc")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("by", ["sentences", "", "Paragraph", None, 5, 2.5])
def test_units_that_there_are_not_are_refused(by: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"by must be one of paragraph, sentence, heading, got {by!r}"):
        make_boundaries(by)


def test_a_function_without_its_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"needs a whole text: use from_callable\(function, text\)"):
        make_boundaries(lambda text: [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [0, -1, 1.0, True, None, "2"])
@pytest.mark.parametrize("by", ["paragraph", [1]])
def test_every_is_a_whole_number_from_1(by: Any, every: Any) -> None:
    with pytest.raises(InvalidInputError, match="every must be "):
        make_boundaries(by, every)


@pytest.mark.parametrize(
    "change",
    [
        {"by": "paragraph"},
        {"by": "page"},
        {"by": None},
        {"end": "5"},
        {"every": True},
        {"more": 1},
        {"units": None},
        {"every": 0},
        {"end": -7},
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, Any]) -> None:
    found: Boundaries
    for found in (Headings(), Given([1, 2])):
        state = found.state() | change
        with pytest.raises(InvalidInputError, match=r"no state of|must be"):
            restore_boundaries(state)
    with pytest.raises(InvalidInputError, match="no state of"):
        restore_boundaries({})
