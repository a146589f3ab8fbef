"""Replies to checked examples. Whatever cannot be used is `Rejected` with a reason that can be counted."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from thalweg.synthesis.languages import count_words, in_script
from thalweg.synthesis.tasks import KINDS, TaskType
from thalweg.system.words import counted

MAX_SHORT_WORDS = 150
"""A phrase or sentence with more words is a passage in the wrong place."""

MAX_CHARACTERS = 100_000
"""A field with more characters comes from a model that went round in circles."""

MIN_LONG_WORDS = 20
"""The least words of a passage, whatever was asked for."""

MIN_SHARE_OF_WORDS = 0.5
"""The share of the words asked for that is enough: models write less than they are told, and half is still long."""

TASK_WORDS = (3, 80)
"""Least and most words of a task."""

_SORRY = r"i['’]?m (?:\w+ )?sorry|i am sorry|sorry|i apologi[sz]e|unfortunately"
_UNABLE = r"i (?:can(?:no|['’]|)t|can not|am (?:unable|not able) to|won['’]?t)"
_REFUSAL = re.compile(
    rf"\s*(?:(?:{_SORRY})[,.:;]? (?:but )?)?(?:as an? (?:ai|large language model|language model)\b|{_UNABLE} "
    r"(?:help|assist|provide|create|generate|write|fulfil|comply|produce|answer|do that|do this)\b)",
    re.IGNORECASE,
)
_APOLOGY = re.compile(rf"\s*(?:{_SORRY}|{_UNABLE})\b", re.IGNORECASE)
"""Enough where JSON was asked for, while a text in it may well begin so."""

_PLACEHOLDER = re.compile(r"\s*(?:\.\.\.|…|\[[^\]]*\]|<[^>]*>|\{[^}]*\}|string|lorem ipsum.*)\s*", re.IGNORECASE)
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)


class Rejected(Exception):
    """A reply that cannot be used. reason: one of few words, to be counted; detail: what exactly."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_tasks(reply: str) -> tuple[list[str], list[str]]:
    """Ideas for tasks in a reply: those that can be used, and those that cannot.

    Raises:
        Rejected: no list of strings, a refusal, or fewer than half can be used.
    """
    lists = [
        item
        for value in _values(reply)
        for item in (value.values() if isinstance(value, dict) else [value])  # {"tasks": [...]}
        if isinstance(item, list) and item
    ]
    if not lists:
        raise _no_json(reply, "a list of strings")
    value = max(lists, key=len)  # not the [1] of a footnote
    good: list[str] = []
    bad: list[str] = []
    for item in value:
        text = " ".join(item.split()) if isinstance(item, str) else ""
        usable = TASK_WORDS[0] <= count_words(text) <= TASK_WORDS[1] and _is_text(text) and not _REFUSAL.match(text)
        (good if usable else bad).append(text if usable else json.dumps(item, ensure_ascii=False))
    if len(good) < len(bad) or not good:
        raise Rejected("wrong type", f"{len(bad)} of {counted(len(value), 'item')} are no tasks, such as {bad[0][:80]}")
    return good, bad


def check_example(name: TaskType, attributes: Mapping[str, str], reply: str) -> dict[str, str]:
    """The fields of an example by name, stripped.

    Raises:
        Rejected: see its reasons here below.
    """
    wanted = {field.name for field in KINDS[name].fields}
    objects = [
        item
        for value in _values(reply)
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, dict)
    ]
    if not objects:
        raise _no_json(reply, "an object")
    found = next((value for value in objects if wanted <= value.keys()), None)
    if found is None:
        missing = ", ".join(sorted(wanted - objects[0].keys()))
        raise Rejected("missing field", f"{missing}; the keys are {', '.join(map(str, objects[0]))[:80] or 'none'}")
    fields: dict[str, str] = {}
    for field in KINDS[name].fields:
        value = found[field.name]
        if not isinstance(value, str):
            raise Rejected("wrong type", f"{field.name} is {json.dumps(value, ensure_ascii=False)[:80]}, not a string")
        fields[field.name] = _check_text(field.name, value.strip())
        _check_length(field.name, fields[field.name], field.long, attributes)
        language = attributes["language" if name != "bitext" or field.role == "query" else "other_language"]
        if not in_script(fields[field.name], language):
            raise Rejected("wrong language", f"{field.name} is not in {language}: {fields[field.name][:80]!r}")
    _check_distinct(fields)
    return fields


def same_text(text: str) -> str:
    """What two texts have in common that differ in case, spaces and forms of characters only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _check_text(name: str, text: str) -> str:
    if not text or not any(c.isalnum() for c in text) or _PLACEHOLDER.fullmatch(text):
        raise Rejected("empty field", f"{name} is {text[:80]!r}")
    if not _is_text(text):
        raise Rejected("wrong type", f"{name} has characters that are no text")
    if _REFUSAL.match(text):
        raise Rejected("refusal", f"{name} is {text[:80]!r}")
    return text


def _is_text(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _check_length(name: str, text: str, long: bool, attributes: Mapping[str, str]) -> None:
    words = count_words(text)
    if long:
        asked = int(attributes.get("min_words", 0))
        least = max(int(asked * MIN_SHARE_OF_WORDS), MIN_LONG_WORDS)
        if words < least:
            raise Rejected("too short", f"{name} has {counted(words, 'word')}; at least {least} are needed")
    elif words > MAX_SHORT_WORDS:
        raise Rejected("too long", f"{name} has {counted(words, 'word')}, more than {MAX_SHORT_WORDS}")
    if len(text) > MAX_CHARACTERS:
        raise Rejected("too long", f"{name} has {len(text):,} characters, more than {MAX_CHARACTERS:,}")


def _check_distinct(fields: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, text in fields.items():
        other = seen.setdefault(same_text(text), name)
        if other != name:
            raise Rejected("same texts", f"{other} and {name} are both {text[:80]!r}")


def _no_json(reply: str, wanted: str) -> Rejected:
    text = _THOUGHT.sub("", reply).strip()
    if not text:
        return Rejected("empty reply", "no text")
    if _REFUSAL.match(text) or _APOLOGY.match(text):
        return Rejected("refusal", repr(text[:80]))
    return Rejected("no JSON", f"{wanted} was asked for, but the reply is {text[:80]!r}")


def _values(reply: str) -> Iterator[Any]:
    """JSON objects and lists in a reply, from the outside to the inside of fences, chatter and thoughts."""
    text = _THOUGHT.sub("", reply)
    decoder = json.JSONDecoder(strict=False)  # line breaks in strings are common, and clear enough
    for part in (text, *_FENCE.findall(text)):
        at, end = _next_opening(part, 0), 0
        while at >= 0:
            try:
                value, end = decoder.raw_decode(part, at)
            except RecursionError:
                break  # a model that went round in circles; each further bracket would fail as slowly
            except ValueError:
                end = at + 1
            else:
                yield value
            at = _next_opening(part, end)


def _next_opening(text: str, start: int) -> int:
    places = [place for place in (text.find("{", start), text.find("[", start)) if place >= 0]
    return min(places, default=-1)
