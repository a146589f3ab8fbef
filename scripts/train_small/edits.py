"""Sentences made from sentences: small edits that change the meaning a little, or much, or not at all.

A mean of token vectors sees neither order nor negation; pairs that differ in these alone are rare in running text. The
teacher gives each edited sentence its vector, so an edit needs no label and may be nonsense. Words to put in come from
the sentences themselves. Written for short descriptions ("A man riding a wave on a surfboard.").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_AFTER_NOUN = r"(?=\s+(?:is|are|was|were|in|on|with|at|of|and|near|next|by|from|to|that|who|while|[a-z]+ing)\b|[.,]|$)"
_NOUN = re.compile(r"\b(a|an|the|his|her|their|some)\s+((?:[a-z]+\s+)?)([a-z]{3,})" + _AFTER_NOUN, re.IGNORECASE)
_GERUND = re.compile(
    r"\b(?!(?:thing|king|ring|wing|string|spring|morning|evening|during|building|ceiling|something"
    r"|nothing|everything|anything|being|having|according|including)\b)[a-z]{2,}ing\b"
)
_TAIL = re.compile(r"\s(?:in|on|with|at|near|next to|by|while|under|behind|in front of|across|through|over)\s[^,]+$")
_PREDICATE = re.compile(
    rf"{_GERUND.pattern}(?: (?:a|an|the|his|her|some|up|on|in|at|with|down|[a-z]+s)\b){{1,2}}(?: [a-z]{{3,}}){{0,2}}"
    r"(?=[.,]|$| (?:in|on|with|at|near|next|by|while|and)\b)"
)
_NO_NOUNS = {"that", "next", "side", "top", "front", "who", "while"}
_SUBJECTS = ("man", "woman", "person", "boy", "girl", "child", "baby", "dog", "cat", "player", "lady", "kid", "couple")
_COUNTED = {"a": ("the", "one", "no", "another"), "an": ("the", "one", "no", "another"), "the": ("a", "no", "this")}

Edit = Callable[[str, np.random.Generator], str | None]


class Edits:
    """Edits of sentences, with nouns and gerunds taken from `examples`."""

    def __init__(self, examples: Sequence[str]) -> None:
        nouns = [match[3].lower() for text in examples for match in _NOUN.finditer(text)]
        self.nouns = [noun for noun in nouns if noun not in _NO_NOUNS and not _GERUND.fullmatch(noun)]
        self.predicates = [match[0] for text in examples for match in _PREDICATE.finditer(text)]
        self.gerunds = [match[0] for text in examples for match in _GERUND.finditer(text)]
        self.tails = [match[0] for text in examples for match in _TAIL.finditer(text.rstrip(".! "))]
        every: list[tuple[int, Edit]] = [
            (4, self.negate),
            (4, self.swap_nouns),
            (4, self.other_noun),
            (4, self.other_gerund),
            (2, self.full_verb),
            (2, self.without_tail),
            (1, self.other_tail),
            (2, self.tail_first),
            (2, self.other_determiner),
            (2, self.existence),
            (1, self.shuffle),
        ]
        self._edits = [edit for weight, edit in every for _ in range(weight)]

    def __call__(self, sentence: str, rng: np.random.Generator) -> str | None:
        """One or two edits after each other, or None where none applies or the sentence is a question."""
        if "?" in sentence:
            return None
        text = sentence.rstrip(".! ")
        for _ in range(1 + (rng.random() < 0.35)):
            edit = self._edits[rng.integers(len(self._edits))]
            text = edit(text, rng) or text
        return None if text == sentence.rstrip(".! ") else text[:1].upper() + text[1:] + "."

    def statement(self, rng: np.random.Generator) -> str:
        """A new simple sentence: who does what, and at times where."""
        article = ("A", "A", "A", "The", "The", "One", "No")[rng.integers(7)]
        subject = _SUBJECTS[rng.integers(len(_SUBJECTS))] if rng.random() < 0.8 else _pick(self.nouns, rng)
        verb = ("is", "is", "is", "is", "is not")[rng.integers(5)]
        tail = _pick(self.tails, rng) if rng.random() < 0.3 else ""
        return f"{article} {subject} {verb} {_pick(self.predicates, rng)}{tail}."

    def negate(self, text: str, rng: np.random.Generator) -> str | None:
        if " not " in text:
            return text.replace(" not ", " ", 1)
        if match := re.match(r"(?:a|an|the)\s+(.+)", text, re.IGNORECASE):
            if rng.random() < 0.5:
                return ("There is no " if rng.random() < 0.6 else "No ") + match[1].replace(" is ", " ", 1)
            text = self.full_verb(text, rng) or text
        negated = re.sub(
            r"\b(is|are|was|were|can|will|does|do|did|should|has|have)\b(?! not)", r"\1 not", text, count=1
        )
        return negated if negated != text else None

    def swap_nouns(self, text: str, rng: np.random.Generator) -> str | None:
        found = list(_NOUN.finditer(text))
        if len(found) < 2:
            return None
        first, second = (found[i] for i in sorted(rng.choice(len(found), 2, replace=False)))
        between = text[first.end(3) : second.start(3)]
        return text[: first.start(3)] + second[3] + between + first[3] + text[second.end(3) :]

    def other_noun(self, text: str, rng: np.random.Generator) -> str | None:
        return _replace(text, _NOUN, 3, self.nouns, rng)

    def other_gerund(self, text: str, rng: np.random.Generator) -> str | None:
        return _replace(text, _GERUND, 0, self.gerunds, rng)

    def full_verb(self, text: str, rng: np.random.Generator) -> str | None:
        """A man riding -> A man is riding."""
        full = re.sub(r"^((?:a|an|the)\s+(?:[a-z]+\s+)?[a-z]{3,})\s+([a-z]{2,}ing)\b", r"\1 is \2", text, flags=re.I)
        return full if full != text else None

    def without_tail(self, text: str, rng: np.random.Generator) -> str | None:
        match = _TAIL.search(text)
        return text[: match.start()] if match and match.start() > 8 else None

    def other_tail(self, text: str, rng: np.random.Generator) -> str | None:
        return (self.without_tail(text, rng) or text) + _pick(self.tails, rng)

    def tail_first(self, text: str, rng: np.random.Generator) -> str | None:
        match = _TAIL.search(text)
        return f"{match[0].strip()}, {text[: match.start()].lower()}" if match and match.start() > 8 else None

    def other_determiner(self, text: str, rng: np.random.Generator) -> str | None:
        found = list(re.finditer(r"\b(?:a|an|the)\b", text, re.IGNORECASE))
        if not found:
            return None
        match = found[rng.integers(len(found))]
        options = _COUNTED[match[0].lower()]
        return text[: match.start()] + options[rng.integers(len(options))] + text[match.end() :]

    def existence(self, text: str, rng: np.random.Generator) -> str | None:
        if match := re.match(r"there (?:is|are) (.+)", text, re.IGNORECASE):
            return match[1]
        return f"There is {text[:1].lower()}{text[1:]}" if re.match(r"(?:a|an)\s", text, re.IGNORECASE) else None

    def shuffle(self, text: str, rng: np.random.Generator) -> str | None:
        return " ".join(rng.permutation(text.split()))


_LITTLE = re.compile(r"\b(?:an?|the|this|these|his|her|its|their|is|are|was|were|has|have|had|been|that|who)\s+", re.I)
_CLAUSE_END = re.compile(r"[,;:()\u2013\u2014]|\s(?:which|who|because|although|while|when|where|but|since)\s")
_NAME = re.compile(r"(?<=[a-z] )[A-Z][a-z]{3,}(?: [A-Z][a-z]{2,})?")
_NUMBER = re.compile(r"\b\d{1,4}\b")
HEADLINE_WORDS = (4, 12)


class Headlines:
    """Headlines made from sentences: without articles and auxiliaries, and some with another name or number."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.names = [match[0] for text in sentences for match in _NAME.finditer(text)]

    def __call__(self, sentence: str, rng: np.random.Generator) -> str | None:
        """None where the first clause of the sentence is too short or too long."""
        clause = _CLAUSE_END.split(sentence.strip(), maxsplit=1)[0].rstrip(".!? ")
        text = " ".join(_LITTLE.sub("", clause + " ").split())
        if not HEADLINE_WORDS[0] <= text.count(" ") + 1 <= HEADLINE_WORDS[1]:
            return None
        for what, share in ((_NAME, 0.3), (_NUMBER, 0.5)):
            if rng.random() < share:
                by = self.names if what is _NAME else [str(rng.integers(2, 60))]
                text = _replace(text, what, 0, by, rng) or text
        return text[:1].upper() + text[1:]


def _pick(words: list[str], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]


def _replace(text: str, what: re.Pattern[str], group: int, by: list[str], rng: np.random.Generator) -> str | None:
    found = list(what.finditer(text))
    if not found:
        return None
    match = found[rng.integers(len(found))]
    return text[: match.start(group)] + _pick(by, rng) + text[match.end(group) :]
