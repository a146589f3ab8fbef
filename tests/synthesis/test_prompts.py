"""Prompts as a function of the seed, counts and languages."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import InvalidInputError
from thalweg.synthesis.languages import SCRIPT_OF, count_words, default_languages, in_script, parse_languages
from thalweg.synthesis.preview import TASK_TO_COME, first_prompts, n_requests
from thalweg.synthesis.prompts import brainstorm_prompt, example_prompt
from thalweg.synthesis.settings import Settings
from thalweg.synthesis.tasks import KINDS, SHARES, TASK_TYPES, TaskType, counts_of_total, parse_counts

LANGUAGES = default_languages()


@pytest.mark.parametrize("name", TASK_TYPES)
def test_a_prompt_is_a_function_of_seed_number_and_attempt(name: TaskType) -> None:
    def make(seed: int, number: int, attempt: int) -> str:
        return example_prompt(seed, name, number, attempt, LANGUAGES, "a task").text

    assert make(0, 3, 1) == make(0, 3, 1)
    texts = {make(seed, number, attempt) for seed in range(3) for number in range(10) for attempt in range(3)}
    assert len(texts) > 30, "and hardly ever the same for another of them"
    shuffled = dict(reversed(LANGUAGES.items()))
    assert example_prompt(0, name, 3, 1, shuffled, "a task").text == make(0, 3, 1), "whatever the order of languages"


@pytest.mark.parametrize("name", TASK_TYPES)
def test_every_attribute_and_key_is_in_the_prompt(name: TaskType) -> None:
    drawn: dict[str, set[str]] = {}
    for number in range(200):
        prompt = example_prompt(1, name, number, 0, LANGUAGES, "sort ships")
        for attribute, value in prompt.attributes.items():
            if attribute != "domain" or "sort ships" not in prompt.text:
                assert value in prompt.text, attribute
            drawn.setdefault(attribute, set()).add(value)
        assert all(f'"{field.name}"' in prompt.text for field in KINDS[name].fields)
        assert "{" not in prompt.text
        if name == "bitext":
            assert prompt.attributes["language"] != prompt.attributes["other_language"]
    for attribute, values in KINDS[name].attributes.items():
        assert drawn[attribute] == set(values)
    assert len(drawn["language"]) > 30


def test_english_is_drawn_as_often_as_it_should() -> None:
    languages = Counter(
        example_prompt(0, "sts", number, 0, LANGUAGES, None).attributes["language"] for number in range(2000)
    )
    assert 0.38 < languages["English"] / 2000 < 0.48


def test_ideas_for_tasks_are_asked_for_in_different_fields() -> None:
    prompts = [brainstorm_prompt(0, "long-long", number, 0, 7) for number in range(50)]
    assert all("Think of 7 different tasks" in prompt.text for prompt in prompts)
    assert len({prompt.text for prompt in prompts}) > 45


@given(total=st.integers(1, 10**6))
def test_a_total_is_divided_to_the_last_example(total: int) -> None:
    counts = counts_of_total(total)
    assert sum(counts.values()) == total
    for name, share in SHARES.items():
        assert abs(counts.get(name, 0) - total * share / sum(SHARES.values())) < 1


def test_counts_are_read_in_a_fixed_order() -> None:
    assert list(parse_counts("sts=2, short-long=3").items()) == [("short-long", 3), ("sts", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("long=3", "unknown task type 'long'"),
        ("sts", "'sts' gives no number"),
        ("sts=0", "'sts=0' gives no number"),
        ("sts=²", "'sts=²' gives no number"),
        (f"sts={'9' * 5000}", "gives no number"),
        ("sts=1,sts=2", "sts stands twice"),
        ("", "unknown task type ''"),
    ],
)
def test_wrong_counts_are_quoted(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_counts(text)


def test_languages_are_read_with_their_weights() -> None:
    assert parse_languages(["english=8", "German"]) == {"English": 8.0, "German": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["Klingon"], "unknown language 'Klingon'"),
        (["German", "german=2"], "German was given twice"),
        (["German=0"], "'German=0' has to be a number above zero"),
        (["German=many"], "'German=many' has to be a number above zero"),
        (["German=inf"], "'German=inf' has to be a number above zero"),
        (["German=1e308", "Greek=1e308"], "weights of the languages are too large"),
    ],
)
def test_wrong_languages_are_quoted(values: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_languages(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": {}}, "no examples are wanted"),
        ({"counts": {"sts": 0}}, "sts=0 is no number of examples"),
        ({"counts": {"bitext": 1}, "languages": {"English": 1.0}}, "bitext needs two languages"),
        ({"counts": {"sts": 1}, "languages": {}}, "no language"),
        ({"counts": {"sts": 1}, "attempts": 0}, "attempts has to be at least 1"),
        ({"counts": {"sts": 10**8}}, "100,000,000 examples are wanted, more than the 10,000,000 of one run"),
        ({"counts": {"sts": 1}, "temperature": float("nan")}, "temperature has to be a number from 0 on, not nan"),
        ({"counts": {"sts": 1}, "temperature": -1.0}, "temperature has to be a number from 0 on, not -1"),
        ({"counts": {"sts": 1}, "brainstorm_temperature": float("inf")}, "brainstorm_temperature has to be a number"),
        ({"counts": {"sts": 1}, "price": (1.0, float("nan"))}, "prices have to be numbers from 0 on, not 1.0 and nan"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Settings(**settings)


def test_scripts_tell_languages_apart() -> None:
    samples = {"Russian": "Река течёт к морю", "Chinese": "河水流向大海", "Japanese": "川は海へ流れる", "Thai": "แม่น้ำ"}
    samples |= {"Greek": "Το ποτάμι", "Korean": "강은 바다로", "Hindi": "नदी बहती है", "Arabic": "النهر يجري"}
    samples |= {"English": "The river runs", "Vietnamese": "Dòng sông chảy ra biển"}
    for language, text in samples.items():
        assert in_script(text, language)
        for other, script in SCRIPT_OF.items():
            if {script, SCRIPT_OF[language]} <= {"Han", "Japanese"}:
                continue
            assert in_script(text, other) == (script == SCRIPT_OF[language]), (language, other)
    assert in_script("12:30", "Chinese"), "no letters"
    assert in_script("Python 3 中的列表推导式怎么写才更快", "Chinese"), "foreign words"


def test_words_are_counted_where_no_spaces_are() -> None:
    assert count_words("two words") == 2
    assert count_words("河水流向大海") == 3
    assert count_words("use Python 中的列表") == 4
    assert count_words(" ") == 0


def test_the_preview_shows_the_prompts_of_a_run() -> None:
    settings = Settings({"long-short": 45, "sts": 3})
    prompts = list(first_prompts(settings))
    assert [prompt.id for prompt in prompts] == ["tasks/long-short/0", "long-short/0", "sts/0"]
    assert TASK_TO_COME in prompts[1].text
    assert prompts[2] == example_prompt(0, "sts", 0, 0, settings.languages, None)
    assert n_requests(settings) == (3, 48)
