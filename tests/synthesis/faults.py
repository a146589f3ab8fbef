"""Replies of a model that is right most of the time; the same for the same prompt."""

from __future__ import annotations

import json

from .server import Answer, Request, good_answer, good_fields

CONTENT_FAULTS = {
    "malformed": "no JSON",
    "prose": "no JSON",
    "refusal": "refusal",
    "refusing field": "refusal",
    "wrong fields": "missing field",
    "number": "wrong type",
    "empty": "empty field",
    "same": "same texts",
    "cut": "cut off",
    "filtered": "refusal",
    "no choices": "no choices",
    "silent": "empty reply",
}
"""Ways to be wrong, and the reason that each is rejected for."""


def faulty(request: Request, fault: str) -> Answer:
    """A reply to the second step that is wrong in one way."""
    fields = good_fields(request)
    names = list(fields)
    whole = json.dumps(fields, ensure_ascii=False)
    changed = {
        "wrong fields": {f"{name}s": text for name, text in fields.items()},
        "number": {**fields, names[1]: 7},
        "empty": {**fields, names[1]: " "},
        "same": {**fields, names[-1]: fields[names[-2]]},
        "refusing field": {**fields, names[0]: "I'm sorry, but I cannot provide that."},
    }
    if fault in changed:
        return Answer(json.dumps(changed[fault], ensure_ascii=False))
    return {
        "malformed": Answer(whole.replace('", "', '" "')),
        "prose": Answer("Here is an example about rivers, without further ado."),
        "refusal": Answer("I'm sorry, but I can't help with that."),
        "cut": Answer(whole[: len(whole) // 2], finish="length"),
        "filtered": Answer("", finish="content_filter"),
        "no choices": Answer(body=json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}})),
        "silent": Answer(""),
    }[fault]


def unreliable(request: Request) -> Answer:
    """Three of ten replies are wrong, others have chatter around them, and one request of five fails at first."""
    trouble = [
        Answer(status=500, body="out of order"),
        Answer(status=429, headers={"Retry-After": "0.02"}, body="{}"),
        Answer(drop=True),
        Answer(body="<html>"),
    ]
    rank = int(request.chance * 1e6)
    if rank % 5 == 0 and not request.seen:
        return trouble[rank % 4]
    faults = list(CONTENT_FAULTS)
    if rank % 10 in (1, 4, 7):
        if request.prompt.startswith("Think of"):
            return Answer("I would rather think of something else.")
        return faulty(request, faults[rank // 10 % len(faults)])
    answer = good_answer(request)
    if rank % 10 in (2, 3):
        answer.content = f"Of course!\n```json\n{answer.content}\n```\nAnything else?"
    return answer
