"""What the model is asked. A prompt is a function of the seed, the type of task, a number and an attempt, so a run that
is repeated or resumed asks the same, whatever the order in which replies come.

An attempt that was rejected is followed by another with attributes drawn anew: a model that refuses a prompt, or
answers it badly, would do so again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from thalweg.synthesis.tasks import KINDS, TaskType

PROMPTS_VERSION = 1
"""Raised with every change of what is asked: a run is not resumed with other prompts than it began with."""

Attributes = Mapping[str, str]

_DOMAIN_LIST = """
medicine and nursing; law and courts; school teaching; university research; cooking and food; travel and places;
software development; electronics; machines and workshops; building and crafts; farming and gardening; animals;
weather and climate; rivers, seas and water; energy and power grids; chemistry and materials; physics and astronomy;
mathematics; biology and genetics; history; archaeology; geography and maps; politics and administration;
taxes and accounting; banking and insurance; economics; trade and logistics; online shops; customer support;
jobs and hiring; sports; games; film and television; music; literature and poetry; art and museums;
religion and philosophy; language and linguistics; psychology; family and children; health and fitness;
fashion and beauty; cars and traffic; railways and public transport; aviation and space; shipping and ports;
news and journalism; social media; dating and friendship; emergency services; security and fraud;
patents and inventions; standards and regulations; scientific articles; technical documentation; data and statistics;
real estate; environment and conservation; volunteering and charity; everyday household problems
"""

_DOMAINS = [" ".join(domain.split()) for domain in _DOMAIN_LIST.split(";")]

_ANGLES = (
    "ordinary, frequent needs",
    "professional work",
    "needs of beginners",
    "needs that existing search engines serve badly",
    "unusual but real needs",
    "needs of organisations with large archives",
)

_TASKS: dict[TaskType, tuple[str, str]] = {
    "short-long": (
        "the input is short, such as a question, a few keywords, a title or a claim, and what is to be found is a "
        "longer passage or document",
        "Given the name of a rash, find leaflets that tell patients how to treat it",
    ),
    "long-short": (
        "the input is a longer text, and what is to be found is short: a class, a label or a name out of some set, "
        "such as a topic, an opinion, an intention or a kind of document",
        "Sort the reports of train drivers by the part of the train that failed",
    ),
    "short-short": (
        "the input and what is to be found are both short, a few words or one sentence, and they belong together "
        "without meaning the same",
        "Given the job title of a person, find a tool that this person uses",
    ),
    "long-long": (
        "the input and what is to be found are both longer texts, which belong together without meaning the same",
        "Given the minutes of a council meeting, find newspaper articles about one of its decisions",
    ),
}
"""What the tasks of each type are like, and an example of ours."""

_EXAMPLES: dict[TaskType, str] = {
    "short-long": """\
- "query": what a user would type for this task: {query_length}; it is about {query_type}; it {clarity}.
- "positive": a text that serves this query well. At least {min_words} words.
- "hard_negative": a text of about the same length and style that shares words and subject with the query and seems to \
fit at first sight, but does not serve it. At least {min_words} words.

Write "positive" and "hard_negative" for {difficulty}. They must not talk about the query or say how well they \
fit it, and "positive" must not repeat the query word for word.""",
    "long-short": """\
- "text": an input for this task. At least {min_words} words, written for {difficulty}. It {clarity}.
- "label": the correct label, a word or a short phrase.
- "misleading_label": a label of the same set that is wrong here, but could be taken for the correct one.

"text" must not contain "label" as a phrase and must not say that it is an example.""",
    "short-short": """\
- "input": an input for this task, a few words or one sentence.
- "positive": what should be found for it, a few words or one sentence.

Choose a case that is specific and not the first that comes to mind. The two must not be the same text, and neither \
may be a list of several cases.""",
    "long-long": """\
- "input": an input for this task, several paragraphs long.
- "positive": a text of about that length that should be found for it.

Write both in full, as they would really occur, without headings such as "Input". The two belong together by their \
content; avoid long stretches of the same words.""",
    "sts": """\
- "S1": a {unit}.
- "S2": a {unit} with similarity {high} to "S1".
- "S3": a {unit} with similarity {low} to "S1".

Similarity runs from 0 (no relation) through 3 (the subject is the same, but what is said differs in something \
important) to 5 (both say exactly the same). Change wording and grammar between the three, so that shared words alone \
do not tell which one is closer. Write for {difficulty}.""",
    "bitext": """\
- "S1": a {unit} in {language}.
- "S2": a {unit} in {other_language} that translates "S1" with similarity {high}.
- "S3": a {unit} in {other_language} that is about the same subject as "S1" and has similarity {low} to it.

Similarity runs from 0 (no relation) through 3 (the subject is the same, but what is said differs in something \
important) to 5 (a perfect translation). Write for {difficulty}.""",
}
"""The fields of each type and what they are like. Attributes are put in by name."""

_STYLES = ("plain", "formal", "conversational", "terse", "lively", "technical")


@dataclass(frozen=True)
class Prompt:
    """A question to the model.

    id: `tasks/TYPE/n` in the first step and `TYPE/n` in the second; attempt: from 0; attributes: that were drawn;
    text: the message; seed: for endpoints that take one.
    """

    id: str
    attempt: int
    attributes: Attributes
    text: str
    seed: int


def brainstorm_prompt(seed: int, name: TaskType, number: int, attempt: int, tasks_per_call: int) -> Prompt:
    """The first step: ideas for tasks of an asymmetric type."""
    id = f"tasks/{name}/{number}"
    rng = _rng(seed, id, attempt)
    attributes = {"domain": rng.choice(_DOMAINS), "second_domain": rng.choice(_DOMAINS), "angle": rng.choice(_ANGLES)}
    nature, example = _TASKS[name]
    text = f"""\
Think of {tasks_per_call} different tasks for a text search system in which {nature}.

Take most of them from {attributes["domain"]}, some from {attributes["second_domain"]}, and think of \
{attributes["angle"]}. Each task is one sentence in English that says what is given and what is to be found, precise \
enough that two people would build the same test set from it. An example of the form, not of the content: "{example}".

Answer with a JSON list of {tasks_per_call} strings and nothing else."""
    return Prompt(id, attempt, attributes, text, rng.getrandbits(31))


def example_prompt(
    seed: int, name: TaskType, number: int, attempt: int, languages: Mapping[str, float], task: str | None
) -> Prompt:
    """The second step: one example. `task` comes from the first step, None for types with a fixed instruction."""
    id = f"{name}/{number}"
    kind = KINDS[name]
    rng = _rng(seed, id, attempt)
    attributes = {attribute: rng.choice(values) for attribute, values in kind.attributes.items()}
    attributes["language"] = _draw(rng, languages)
    if name == "bitext":
        others = {language: weight for language, weight in languages.items() if language != attributes["language"]}
        attributes["other_language"] = _draw(rng, others)
    if name in ("sts", "bitext"):  # no task of its own that would lead it elsewhere
        attributes["domain"] = rng.choice(_DOMAINS)
    attributes["style"] = rng.choice(_STYLES)
    names = ", ".join(f'"{field.name}"' for field in kind.fields)
    if task is not None:
        opening = f"Make one training example for this text search task: {task}"
    else:
        opening = (
            "Make one training example for a model that judges how similar two texts are. "
            f"Their subject: {attributes['domain']}."
        )
    language = "" if name == "bitext" else f" All values are in {attributes['language']}."
    text = f"""\
{opening}

Answer with one JSON object with the keys {names}, all of them strings, and nothing else.

{_EXAMPLES[name].format_map(attributes)}

The style is {attributes["style"]}.{language} Invent what you need; no placeholders, no remarks."""
    return Prompt(id, attempt, attributes, text, rng.getrandbits(31))


def _rng(seed: int, id: str, attempt: int) -> random.Random:
    return random.Random(f"{seed}/{id}/{attempt}")


def _draw(rng: random.Random, weights: Mapping[str, float]) -> str:
    names = sorted(weights)
    return rng.choices(names, [weights[name] for name in names])[0]
