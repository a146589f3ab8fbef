"""Documents cut into sections, and queries that each ask for one section, made by rules.

A `plain` query is some words of a sentence of its section. A `context` query is some words of a sentence and before
them a name that earlier text makes clear and the section does not have: the character that "she" is, a party to the
case, or the heading above.
"""

from __future__ import annotations

import bisect
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from thalweg.embedder.boundaries import make_boundaries

SECTION_CHARS = 500
"""A section ends with the sentence in which it reaches this many: about 130 tokens."""

QUERY_WORDS = 8
"""At most; the name in a context query counts as one of them."""

LEAST_WORDS = 4
"""Of the sentence."""

REACH = 1_500
"""Characters before a section in which the person that a pronoun means must be named."""

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
STOP_WORDS = frozenset(
    WORD.findall(
        """a about above after again against all also although am an and any are as at be became because been before
        being below between both but by can could did do does doing down during each even ever every few for from
        further get had has have having he her here hers herself him himself his how however i if in into is it its
        itself just like made make many may me might more most much must my myself no nor not now of off on once one
        only or other our ours out over own said same shall she should since so some such than that the their theirs
        them themselves then there therefore these they this those though through thus to too under until up upon us
        very was we well were what when where whether which while who whom whose why will with within without would yet
        you your yours"""
    )
)


@dataclass(frozen=True)
class Document:
    """A text, where its sections end (its own end included), and where its sentences and headings stand."""

    title: str
    text: str
    ends: tuple[int, ...]
    sentences: tuple[tuple[int, int], ...]
    headings: tuple[tuple[int, int], ...]

    def sections(self) -> Iterator[tuple[int, int]]:
        """Where each begins and ends."""
        return zip((0, *self.ends[:-1]), self.ends, strict=True)

    def sentences_between(self, start: int, end: int) -> list[tuple[int, int]]:
        """Those that begin in this part of the text."""
        first = bisect.bisect_left(self.sentences, (start, 0))
        return list(self.sentences[first : bisect.bisect_left(self.sentences, (end, 0))])

    def heading_above(self, end: int) -> tuple[int, int] | None:
        """The last heading that begins before this character."""
        n = bisect.bisect_left(self.headings, (end, 0))
        return self.headings[n - 1] if n else None


@dataclass(frozen=True)
class Query:
    """A query for one section of a document; `name` is what only earlier text says, "" in a plain one."""

    text: str
    document: int
    section: int
    name: str = ""

    def without_name(self) -> Query:
        """Only the words of the section."""
        return replace(self, text=self.text.removeprefix(f"{self.name} "), name="")


def make_document(title: str, text: str, section_chars: int = SECTION_CHARS) -> Document:
    """Sections are whole sentences. One also ends before a heading, unless it is very short."""
    found = make_boundaries("sentence")
    cuts = [*found.push(text), *found.finish(), len(text)]
    sentences = list(zip([0, *cuts[:-1]], cuts, strict=True))
    headings = list(_headings(text))
    starts = {start for start, _ in headings}
    ends, begun = [], 0
    for start, end in sentences:
        if start in starts and start - begun > section_chars // 4:
            ends.append(start)
            begun = start
        if end - begun >= section_chars:
            ends.append(end)
            begun = end
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    return Document(title, text, tuple(ends), tuple(sentences), tuple(headings))


def _headings(text: str) -> Iterator[tuple[int, int]]:
    """Short lines between blank ones that do not end like a sentence, with a paragraph below."""
    for match in re.finditer(r"(?<=\n\n)([A-Z][^\n]{3,59}[\w)?])\n\n(?=[^\n]{200})", text):
        if len(WORD.findall(match[1])) <= 8:
            yield match.span(1)


# --- words ----------------------------------------------------------------------------------------------------------


def content_words(text: str) -> list[str]:
    """All but function words, numbers and words of one or two letters."""
    return [
        word for word in WORD.findall(text) if len(word) > 2 and word.lower() not in STOP_WORDS and not word.isdigit()
    ]


def is_prose(sentence: str) -> bool:
    """Whether this is a whole sentence without figures, citations and what else extraction leaves behind."""
    return bool(re.fullmatch(r"[\"'“‘]?[A-Z][^\d§_*|<>=]{30,}[a-z][.!?][\"'”’]?", sentence)) and " v. " not in sentence


def keywords(sentence: str, most: int, draw: random.Random) -> str | None:
    """At most so many content words of a sentence, drawn by lot and in its order, but not all of them; None if these
    would be too few."""
    found = content_words(sentence)
    n = min(most, len(found) - 1)
    return " ".join(found[i] for i in sorted(draw.sample(range(len(found)), n))) if n >= LEAST_WORDS else None


def _from_section(
    document: Document, start: int, end: int, most: int, draw: random.Random, prefix: str = ""
) -> str | None:
    """Words of one of its sentences, drawn by lot."""
    sentences = [document.text[a:b].strip() for a, b in document.sentences_between(start, end)]
    draw.shuffle(sentences)
    for sentence in sentences:
        if is_prose(sentence) and (chosen := keywords(sentence, most, draw)):
            return prefix + chosen
    return None


def plain_queries(documents: list[Document], seed: int = 0) -> list[Query]:
    """At most one for each section but the first of a document, before which there is no text."""
    draw = random.Random(seed)
    return [
        Query(text, number, section)
        for number, document in enumerate(documents)
        for section, (start, end) in enumerate(document.sections())
        if section and (text := _from_section(document, start, end, QUERY_WORDS, draw))
    ]


# --- novels: who "she" is -------------------------------------------------------------------------------------------

_SAYS = "(?:said|cried|asked|answered|replied|exclaimed|whispered|returned)"
_ACTS = (
    f"(?:{_SAYS}|thought|knew|felt|looked|turned|nodded|laughed|smiled|sat|stood|went|came|took|put|ran|walked|was|had)"
)
_TITLES = {
    "he": WORD.findall(
        """Captain Colonel Lord Sir Doctor Dr Professor Father Mr Mister Master Uncle Earl King Prince President
        Secretary Inspector Sergeant Monsieur Lama Brother Boy Sahib Major General Duke Squire Judge Baron Marquis
        Advocate Admiral Lieutenant Count Provost Dad"""
    ),
    "she": WORD.findall("Lady Mother Miss Mrs Aunt Queen Princess Madam Missus Sister Dame Duchess Countess"),
}
_PEOPLE = {
    "he": WORD.findall(
        """man boy gentleman lad father husband son brother uncle nephew grandfather king captain doctor fellow soldier
        lama priest colonel cook sailor servant officer policeman waiter lawyer clergyman professor chief"""
    ),
    "she": WORD.findall("woman girl lady mother wife daughter sister aunt niece grandmother queen maid nurse"),
}
_NO_NAMES = frozenset([*_TITLES["he"], *_TITLES["she"], *WORD.findall("Holy God Heaven The But And Then")])
_PRONOUNS = {**dict.fromkeys(("he", "him", "his", "himself"), "he"), **dict.fromkeys(("she", "her", "herself"), "she")}
_QUOTE = re.compile(r"[\"“”]|(?<=\s)['‘](?=\w)|(?<=[.,!?])['’](?=\s)")


def characters(document: Document) -> dict[str, str]:
    """The people of a novel, by the word they are called by: "he" or "she".

    A name is a capitalised word that hardly ever stands in lower case, speaks and acts. The first pronoun after it in
    sentences without another name tells which it is.
    """
    text = document.text
    capital = Counter(re.findall(r"\b[A-Z][a-z]{2,}\b", text))
    small = Counter(re.findall(r"\b[a-z]{3,}\b", text))
    speaks = Counter(re.findall(rf"\b{_SAYS} (?:(?:Mr|Mrs|Dr)\. |[A-Z][a-z]+ )?([A-Z][a-z]{{2,}})\b", text))
    acts = speaks + Counter(re.findall(rf"\b([A-Z][a-z]{{2,}}) {_ACTS}\b", text))
    names = [
        name
        for name, n in acts.items()
        if n >= 5 and speaks[name] and capital[name] >= 15 and small[name.lower()] <= 0.02 * capital[name]
    ]
    said_of: dict[str, Counter[str]] = {name: Counter() for name in names if name not in _NO_NAMES}
    for start, end in document.sentences:
        found = WORD.findall(text[start:end])
        here = {word for word in found if word in said_of}
        if len(here) == 1:
            name = here.pop()
            after = found[found.index(name) + 1 :]
            said_of[name].update([_PRONOUNS[word.lower()] for word in after if word.lower() in _PRONOUNS][:1])
    people = {}
    for name, said in said_of.items():
        pronoun, n = max(said.items(), key=lambda item: item[1], default=("", 0))
        if n >= 4 and n >= 2 * (said.total() - n):
            people[name] = pronoun
    return people


def novel_queries(documents: list[Document], seed: int = 0) -> list[Query]:
    """The name of a character, and words of a sentence of narration about "him" or "her".

    Of all that could be meant he is the last to be named before the pronoun, and the most often; the section does not
    name him.
    """
    draw = random.Random(seed)
    queries = []
    for number, document in enumerate(documents):
        people = characters(document)
        for section, (start, end) in enumerate(document.sections()):
            sentences = document.sentences_between(start, end)
            draw.shuffle(sentences)
            for first, last in sentences:
                sentence = document.text[first:last].strip()
                if not is_prose(sentence) or any(name in sentence for name in people):
                    continue
                if is_speech(document.text, first, last):
                    continue
                name = _meant(people, document.text, start, first, sentence)
                if name and name not in document.text[start:end]:
                    chosen = keywords(sentence, QUERY_WORDS - 1, draw)
                    if chosen:
                        queries.append(Query(f"{name} {chosen}", number, section, name))
                        break
    return queries


def is_speech(text: str, start: int, end: int) -> bool:
    """Whether this part of a text has quotation marks, the mark before it opens, or the one after it closes."""
    window = text[max(0, start - 3_000) : end + 3_000]
    start, end = start - max(0, start - 3_000), end - max(0, start - 3_000)
    marks = [(match.start(), window[match.end() : match.end() + 1].isalnum()) for match in _QUOTE.finditer(window)]
    opened = [opens for at, opens in marks if at < start][-1:]
    following = [opens for at, opens in marks if at >= end][:1]
    return any(start <= at < end for at, _ in marks) or opened == [True] or following == [False]


def _meant(people: dict[str, str], text: str, section: int, at: int, sentence: str) -> str | None:
    """Whom the first "he" or "she" of the sentence at this place means, if that is fairly sure."""
    pronoun = next((word.lower() for word in WORD.findall(sentence) if word.lower() in ("he", "she")), None)
    names = [name for name, its in people.items() if its == pronoun]
    if pronoun is None or not names:
        return None
    before = text[max(0, section - REACH) : at]
    titles = "|".join(_TITLES[pronoun])
    mentions = [
        (match.start(), match[1] or match[2])
        for match in re.finditer(rf"\b(?:(?:{titles})\b\.? )?({'|'.join(names)})\b|\b({titles})\b", before)
    ]
    if not mentions:
        return None
    place, name = mentions[-1]
    counts = Counter(mentioned for _, mentioned in mentions)
    if name not in names or counts[name] < max(2, *counts.values()):
        return None
    return None if re.search(rf"\b(?:{'|'.join(_PEOPLE[pronoun])})\b", before[place:]) else name


# --- opinions: whose case it is -------------------------------------------------------------------------------------

_NO_PARTIES = frozenset(
    WORD.findall(
        """united states state states company corp inc llc ltd department county city board commission national
        american bank america court district public school university international group association federal general
        services life insurance new south north first dept secretary ex rel estate parish"""
    )
)


def opinion_queries(documents: list[Document], seed: int = 0) -> list[Query]:
    """The name of the party that the text before has most often, at least three times, if the section names no party,
    and words of a sentence."""
    draw = random.Random(seed)
    queries = []
    for number, document in enumerate(documents):
        parties = [
            word for word in re.findall(r"\b[A-Z][\w’'-]{3,}", document.title) if word.lower() not in _NO_PARTIES
        ]
        for section, (start, end) in enumerate(document.sections()):
            text, before = document.text[start:end].lower(), document.text[:start]
            if any(party.lower() in text for party in parties):
                continue
            counts = Counter({party: len(re.findall(rf"\b{re.escape(party)}\b", before)) for party in parties})
            for party, n in counts.most_common(1):
                words = _from_section(document, start, end, QUERY_WORDS - 1, draw, f"{party} ")
                if n >= 3 and words:
                    queries.append(Query(words, number, section, party))
    return queries


# --- textbooks: what the heading was --------------------------------------------------------------------------------

_NO_TOPICS = frozenset(
    WORD.findall("introduction summary conclusion overview objectives answer answers review exercises references")
)


def textbook_queries(documents: list[Document], seed: int = 0) -> list[Query]:
    """The heading above, or else the chapter's title, if the section has none of its words and the text before has each
    at least three times, and words of a sentence."""
    draw = random.Random(seed)
    queries = []
    for number, document in enumerate(documents):
        lower = document.text.lower()
        for section, (start, end) in enumerate(document.sections()):
            above = document.heading_above(end)
            topics = [document.text[slice(*above)]] if above and above[0] < start else []
            for topic in (*topics, document.title.split(": ")[-1]):
                stems = [word.lower()[: max(4, len(word) - 3)] for word in content_words(topic)]
                if not 1 <= len(stems) <= 4 or re.search(r"[?\d]", topic):
                    continue
                if _NO_TOPICS & {word.lower() for word in content_words(topic)}:
                    continue
                if any(stem in lower[start:end] or lower.count(stem, 0, start) < 3 for stem in stems):
                    continue
                if words := _from_section(document, start, end, QUERY_WORDS - 1, draw, f"{topic} "):
                    queries.append(Query(words, number, section, topic))
                break
    return queries
