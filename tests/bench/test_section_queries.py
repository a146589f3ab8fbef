"""The queries of `benchmarks/section_modes.py` are what their rules say; on text that is made up."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

ANNA = "Anna looked at the grey harbour and she counted the fishing boats. " * 16 + "“It is late,” said Anna. "
CELLAR = "She carried the heavy lantern down the narrow cellar stairs and opened every barrel. " * 14
VARTELAS = "Vartelas was a lawful resident, and Vartelas left the country for one short week. " * 14
STATUTE = "The statute applies forward, and nothing in the words of Congress reaches earlier conduct. " * 14
TIDES = "Tides rise because the moon pulls at the oceans, and tides fall when the planet turns away. " * 4
SHORE = "Mussels close their shells, crabs hide under stones, and birds gather where mud lies open. " * 14


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("section_queries")


def section_of(query: Any, document: Any) -> tuple[str, str]:
    """The text before the section that a query asks for, and the section."""
    start, end = list(document.sections())[query.section]
    return document.text[:start], document.text[start:end]


def assert_named(queries: list[Any], document: Any, name: str) -> None:
    """They begin with a name that only the text before has; their other words are the section's, and not all of them
    are in the query."""
    assert queries
    for query in queries:
        before, section = section_of(query, document)
        assert query.text.startswith(f"{name} ")
        assert name in before
        assert name not in section
        words = query.without_name().text.split()
        assert 4 <= len(words) <= 7
        assert all(word in section for word in words)


@pytest.mark.parametrize("chars", [100, 500, 10_000])
def test_sections_are_whole_sentences_and_tile_the_text(rules: ModuleType, chars: int) -> None:
    text = ANNA + CELLAR
    document = rules.make_document("", text, chars)
    sections = [text[start:end] for start, end in document.sections()]
    assert "".join(sections) == text
    assert all(len(section) >= chars and section.endswith((". ", "boats. ")) for section in sections[:-1])


def test_a_section_ends_before_a_heading(rules: ModuleType) -> None:
    document = rules.make_document("", f"{TIDES}\n\nLife on the Shore\n\n{SHORE}")
    starts = [document.text[start:end][:17] for start, end in document.sections()]
    assert "Life on the Shore" in starts


def test_plain_queries_are_words_of_their_section(rules: ModuleType) -> None:
    document = rules.make_document("", ANNA + CELLAR)
    queries = rules.plain_queries([document])
    assert [query.section for query in queries] == list(range(1, len(document.ends)))
    for query in queries:
        assert 4 <= len(query.text.split()) <= 8
        assert all(word in section_of(query, document)[1] for word in query.text.split())


def test_a_pronoun_is_named_by_the_last_one_it_can_mean(rules: ModuleType) -> None:
    document = rules.make_document("", ANNA + CELLAR)
    assert rules.characters(document) == {"Anna": "she"}
    assert_named(rules.novel_queries([document]), document, "Anna")


@pytest.mark.parametrize(
    "between", ["The old woman nodded. ", "Lady Margaret nodded. ", CELLAR.replace("She", "He") * 2]
)
def test_a_pronoun_that_may_mean_another_is_not_named(rules: ModuleType, between: str) -> None:
    """Nor one far from the name, nor the other pronoun."""
    document = rules.make_document("", ANNA + between + CELLAR)
    assert rules.novel_queries([document]) == []


def test_speech_is_told_from_narration(rules: ModuleType) -> None:
    text = 'It began. "One came home. Two stayed there. Three left," he said. Then it ended. "Four."'
    spoken = {
        sentence: rules.is_speech(text, text.index(sentence), text.index(sentence) + len(sentence))
        for sentence in ("It began.", "Two stayed there.", "Then it ended.")
    }
    assert spoken == {"It began.": False, "Two stayed there.": True, "Then it ended.": False}


def test_opinions_are_named_by_their_party(rules: ModuleType) -> None:
    document = rules.make_document("Vartelas v. United States", VARTELAS + STATUTE)
    assert_named(rules.opinion_queries([document]), document, "Vartelas")


def test_textbooks_are_named_by_the_heading_above(rules: ModuleType) -> None:
    document = rules.make_document("Earth: Water", f"{TIDES}\n\nHow Tides Rise\n\n{TIDES}{SHORE}")
    assert_named(rules.textbook_queries([document]), document, "How Tides Rise")


def test_a_topic_of_which_the_section_has_a_word_is_not_named(rules: ModuleType) -> None:
    document = rules.make_document("Earth: Water", f"{TIDES}\n\nHow Tides Rise\n\n{TIDES * 5}")
    assert rules.textbook_queries([document]) == []


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [
        ("The court below reached the same conclusion on other grounds.", True),
        ("See Brief for Respondent 14, which the court had before it.", False),
        ("and the court below reached the same conclusion on other grounds.", False),
        ("Too short for it.", False),
    ],
)
def test_prose(rules: ModuleType, sentence: str, whole: bool) -> None:
    assert rules.is_prose(sentence) is whole
