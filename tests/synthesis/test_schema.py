"""Replies of models, good and bad."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.synthesis.schema import Rejected, check_example, check_tasks, same_text

STS = {"S1": "The boat is late.", "S2": "The ferry is delayed.", "S3": "The boat is red."}
ENGLISH = {"language": "English"}
PASSAGE = "The pilot knew every bend of the river by day and by night. " * 5
SHORT_LONG = {"query": "river pilots", "positive": PASSAGE + "So.", "hard_negative": PASSAGE + "Not so."}
WHOLE = json.dumps(STS)


@pytest.mark.parametrize(
    "reply",
    [
        WHOLE,
        f"```json\n{WHOLE}\n```",
        f"Sure! Here is the example [1] you asked for:\n\n```\n{WHOLE}\n```\nLet me know {{if}} it helps.",
        f"<think>\nMaybe {{'S1': 1}} or {WHOLE.replace('late', 'early')}?\n</think>\n{WHOLE}",
        f'{{"note": 1}} {WHOLE}',
        f"[{WHOLE}]",
        json.dumps({**STS, "S2": "  The ferry is delayed.\n", "S4": 3}),
        '{"S1": "The boat is late.", "S2": "The ferry is delayed.", "S3": "The boat\n is red."}'.replace("\n ", " "),
        f"\ufeff  {WHOLE}  ",
    ],
)
def test_json_is_found_in_what_is_around_it(reply: str) -> None:
    assert check_example("sts", ENGLISH, reply) == STS


def test_line_breaks_in_strings_are_read() -> None:
    reply = '{"S1": "a line\nand another", "S2": "b", "S3": "c"}'
    assert check_example("sts", ENGLISH, reply)["S1"] == "a line\nand another"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        ("<think>hm</think>", "empty reply"),
        ("The boat is late.", "no JSON"),
        (WHOLE[:-3], "no JSON"),
        (WHOLE.replace('"', "'"), "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m really sorry. This is not possible.", "refusal"),
        ("I cannot generate such content.", "refusal"),
        ("As an AI language model, I …", "refusal"),
        (json.dumps({"S1": "a", "S2": "b"}), "missing field"),
        (json.dumps({"s1": "a", "s2": "b", "s3": "c"}), "missing field"),
        ("{}", "missing field"),
        (json.dumps({**STS, "S2": 5}), "wrong type"),
        (json.dumps({**STS, "S2": None}), "wrong type"),
        (json.dumps({**STS, "S2": ["The ferry"]}), "wrong type"),
        (json.dumps({**STS, "S2": "half \ud800"}), "wrong type"),
        (json.dumps({**STS, "S2": "nul \x00"}), "wrong type"),
        (json.dumps({**STS, "S2": " \n"}), "empty field"),
        (json.dumps({**STS, "S2": "..."}), "empty field"),
        (json.dumps({**STS, "S2": "?!"}), "empty field"),
        (json.dumps({**STS, "S2": "<similar sentence>"}), "empty field"),
        (json.dumps({**STS, "S2": "Sorry, but I can't assist with that request."}), "refusal"),
        (json.dumps({**STS, "S2": "As an AI language model I have no boat."}), "refusal"),
        (json.dumps({**STS, "S2": STS["S1"].upper() + " "}), "same texts"),
        (json.dumps({**STS, "S3": STS["S2"]}), "same texts"),
        (json.dumps({**STS, "S2": "word " * 151}), "too long"),
        (json.dumps({**STS, "S2": "x" * 100_001}), "too long"),
        (json.dumps({**STS, "S2": "Паром опаздывает."}), "wrong language"),
    ],
)
def test_what_cannot_be_used_has_a_reason(reply: str, reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        check_example("sts", ENGLISH, reply)
    assert rejected.value.reason == reason


@pytest.mark.parametrize(
    "text", ["Sorry, I missed the boat.", "I'm sorry for your loss.", "I can't swim.", "Unfortunately, it rained."]
)
def test_an_apology_in_a_text_is_no_refusal(text: str) -> None:
    assert check_example("sts", ENGLISH, json.dumps({**STS, "S1": text}))["S1"] == text


def test_passages_are_held_to_their_length() -> None:
    def check(min_words: int) -> dict[str, str]:
        return check_example("short-long", {**ENGLISH, "min_words": str(min_words)}, json.dumps(SHORT_LONG))

    assert check(100)["query"] == "river pilots"
    with pytest.raises(Rejected, match="too short: positive has 66 words; at least 100 are needed"):
        check(200)
    short = {"input": "A few words.", "positive": PASSAGE}
    with pytest.raises(Rejected, match="too short: input has 3 words; at least 20"):
        check_example("long-long", ENGLISH, json.dumps(short))


def test_a_translation_is_held_to_its_language() -> None:
    attributes = {"language": "English", "other_language": "Greek"}
    fields = {"S1": "The boat is late.", "S2": "Το πλοίο αργεί.", "S3": "Το πλοίο είναι κόκκινο."}
    assert check_example("bitext", attributes, json.dumps(fields)) == fields
    with pytest.raises(Rejected, match="wrong language: S2 is not in Greek"):
        check_example("bitext", attributes, json.dumps({**fields, "S2": "The boat has been delayed."}))


@pytest.mark.parametrize("around", ["{}", "Tasks:\n```json\n{}\n```", '{{"tasks": {}}}', "As in [1]: {} [2]"])
def test_tasks_are_found(around: str) -> None:
    tasks = ["Given a ship, find its port", "Given a port,\n find its ships"]
    found = check_tasks(around.format(json.dumps(tasks)))
    assert found == (["Given a ship, find its port", "Given a port, find its ships"], [])


def test_items_that_are_no_tasks_are_told_apart() -> None:
    good = ["Given a ship, find its port", "Given a port, find its ships"]
    assert check_tasks(json.dumps([*good, "ships", 7])) == (good, ['"ships"', "7"])
    with pytest.raises(Rejected, match="3 of 4 items are no tasks"):
        check_tasks(json.dumps([good[0], "ships", None, "word " * 81]))
    with pytest.raises(Rejected, match="no JSON"):
        check_tasks("1. Given a ship, find its port")
    with pytest.raises(Rejected, match="wrong type"):
        check_tasks(json.dumps(["Given a \ud800 ship, find it"]))


@given(st.text())
def test_any_reply_is_either_checked_or_rejected(reply: str) -> None:
    for check in (lambda: check_example("sts", ENGLISH, reply), lambda: check_tasks(reply)):
        with pytest.raises(Rejected) as rejected:
            check()
        assert rejected.value.reason in {"empty reply", "no JSON", "refusal", "missing field", "wrong type"}


def test_the_same_text_in_other_clothes() -> None:
    assert same_text("  Ｒiver\tBank ") == same_text("river bank")
    assert same_text("river bank") != same_text("river banks")
