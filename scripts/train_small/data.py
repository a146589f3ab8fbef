"""Reads the packed training text of the small model. Standard library and numpy only.

`prepare.py` packs the text into shards, each a sample of the whole and usable alone. A shard is an xz file of JSON
lines. The first line is a header with the table of sources; every other line is one record:

    {"k": "t", "s": 3, "t": text}                    a short text: a sentence to about 300 words
    {"k": "p", "s": 9, "q": query, "t": positive}    a pair
    {"k": "d", "s": 5, "n": title, "t": text}        a whole document; "q" holds a summary of it where there is one

Every text stands once. Sentences and windows are cut by the reader, so they cost no space.
"""

from __future__ import annotations

import json
import lzma
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

DISTILLATION_SHARES: dict[str, tuple[float, tuple[str, ...]]] = {
    # theme: (per cent of the drawn texts, the groups of sources that share it)
    "textbooks": (25, ("openstax", "openstax-biology2014")),
    "everyday": (15, ("tatoeba", "coco", "sgd", "taskmaster")),
    "encyclopedic and news": (12, ("wikisplit", "factbook", "onestopenglish", "vagov", "wikimovies", "disflqa")),
    "abstracts": (12, ("arxiv", "scitldr")),
    "government and speeches": (10, ("digitalgov", "scotus", "nltk-publicdomain", "us-speeches")),
    "classics and novels": (10, ("classics-nonfiction", "novels")),
    "medicine and biology": (8, ("medquad", "plos")),
    "software": (
        5,
        (
            "deb-apache2",
            "deb-django",
            "deb-nodejs",
            "deb-perl",
            "deb-postgresql",
            "deb-python",
            "deb-sqlite",
            "fccguide",
        ),
    ),
    "dictionary": (3, ("wordnet",)),
    "reviews and mixed": (5, ("masc", "nltk-moviereviews", "nltk-reviews")),
}

SHORT_SHARES: dict[str, tuple[float, tuple[str, ...]]] = {
    # of the sentences for the layers: short and everyday, because order and negation matter most there
    "captions": (23, ("coco",)),
    "edited": (32, ("edited",)),
    "headlines": (20, ("headlines",)),
    "conversation": (16, ("tatoeba", "sgd", "taskmaster")),
    "encyclopedic and news": (20, ("wikisplit", "onestopenglish", "disflqa", "wikimovies", "factbook", "masc")),
    "speeches": (4, ("us-speeches", "nltk-publicdomain")),
    "reviews": (5, ("nltk-moviereviews", "nltk-reviews")),
}

CONTRASTIVE_SHARES: dict[str, tuple[float, tuple[str, ...]]] = {
    "textbooks": (25, ("openstax", "openstax-biology2014")),
    "abstracts": (20, ("arxiv", "scitldr", "plos")),
    "paraphrases": (15, ("wikisplit", "disflqa", "coco", "onestopenglish")),
    "medicine and veterans": (12, ("medquad", "vagov")),
    "government": (8, ("digitalgov", "factbook")),
    "software": (8, DISTILLATION_SHARES["software"][1]),
    "dictionary": (7, ("wordnet",)),
    "films": (5, ("wikimovies",)),
    "dialogue": (2, ("sgd",)),  # next turns are weak pairs
}


def work_of(title: str) -> str:
    """What stands before the last bracket, or nothing: "Roe v. Wade (syllabus)" is one work with "(the Court)"."""
    return title.rpartition(" (")[0]


@dataclass(frozen=True)
class Source:
    """Where a text comes from: `group` is the family used for the shares, `name` the finer origin, `kind` of pair."""

    group: str
    name: str
    kind: str = ""


@dataclass
class Shard:
    """The records of one shard; the first item of every record is an index into `sources`."""

    sources: list[Source]
    texts: list[tuple[int, str]] = field(default_factory=list)
    pairs: list[tuple[int, str, str]] = field(default_factory=list)
    documents: list[tuple[int, str, str, str]] = field(default_factory=list)  # source, title, summary or "", text


def read_shard(path: str | Path) -> Shard:
    """Read one shard into memory: about 4 s and 0.5 GB."""
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        shard = Shard([Source(*entry) for entry in json.loads(next(lines))["sources"]])
        for line in lines:
            record = json.loads(line)
            if record["k"] == "t":
                shard.texts.append((record["s"], record["t"]))
            elif record["k"] == "p":
                shard.pairs.append((record["s"], record["q"], record["t"]))
            else:
                shard.documents.append((record["s"], record["n"], record.get("q", ""), record["t"]))
    return shard


# A sentence ends at . ! or ? with closing quotes, before white space and something that opens a sentence.
_SENTENCE_END = re.compile(r"[.!?]+[\"'’”)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"“])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Gov|Sen|Rep|Rev|Hon|Mt|Ft|vs|cf|etc|al"
    r"|No|Nos|Art|Sec|Inc|Co|Corp|Ltd|Fig|Figs|Eq|Ref|approx|ca|pp|vol|ed|eds|e\.g|i\.e|U\.S|U\.K|D\.C|a\.m|p\.m)\.\s+$"
)


def sentences(text: str) -> list[str]:
    """Split a passage into sentences. Lower-case text without capitals stays whole, which is right for our sources."""
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    cuts = [0, *(end for end in ends if not _ABBREVIATION.search(text, max(0, end - 12), end))]
    pieces = (text[start:end].strip() for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True))
    return [piece for piece in pieces if piece]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the words of a text, for cutting it at words."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def windows(text: str, rng: np.random.Generator, least: int, most: int) -> Iterator[str]:
    """Cut a document into consecutive windows whose lengths, in words, are log-uniform in [least, most].

    A last piece shorter than `least` is left out unless it is the whole document.
    """
    spans = word_spans(text)
    start = 0
    while start < len(spans):
        length = round(math.exp(rng.uniform(math.log(least), math.log(most))))
        piece = spans[start : start + length]
        if len(piece) >= least or start == 0:
            yield text[piece[0][0] : piece[-1][1]]
        start += length


def chunks(text: str, words: int = 180) -> list[str]:
    """Cut a long text into pieces that the teacher, which reads 256 tokens, sees whole."""
    spans = word_spans(text)
    return [
        text[spans[start][0] : spans[min(start + words, len(spans)) - 1][1]] for start in range(0, len(spans), words)
    ]


def distillation_texts(
    shard: Shard,
    rng: np.random.Generator,
    sentence_share: float = 0.5,
    document_words: tuple[int, int] | None = (20, 300),
    least_words: int = 3,
    windows_per_document: int = 200,
) -> tuple[list[str], np.ndarray]:
    """All distinct short texts of a shard with the index of their source, in random order.

    They are the passages, both sides of the pairs, the sentences of a `sentence_share` of the longer ones (beside the
    passages themselves), and, unless `document_words` is None, up to `windows_per_document` short windows of each
    whole document.
    """
    found: dict[str, int] = {}
    passages = list(shard.texts)
    for source, query, positive in shard.pairs:
        found.setdefault(query, source)
        passages.append((source, positive))
    for source, title, summary, text in shard.documents:
        found.setdefault(title, source)
        if summary:
            passages.extend((source, piece) for piece in windows(summary, rng, 60, 300))
        if document_words:
            pieces = list(windows(text, rng, *document_words))
            kept = rng.permutation(len(pieces))[:windows_per_document]
            passages.extend((source, " ".join(pieces[index].split())) for index in kept)
    split = rng.random(len(passages)) < sentence_share
    for (source, text), cut in zip(passages, split, strict=True):
        found.setdefault(text, source)
        if cut:
            for sentence in sentences(text):
                if sentence.count(" ") + 1 >= least_words:
                    found.setdefault(sentence, source)
    texts, sources = list(found), np.fromiter(found.values(), np.int32, len(found))
    order = rng.permutation(len(texts))
    return [texts[index] for index in order], sources[order]


def sampling_weights(
    sources: Sequence[Source],
    source_of_text: np.ndarray,
    shares: dict[str, tuple[float, tuple[str, ...]]],
    lengths: np.ndarray | None = None,
    most_repeated: float = 4.0,
) -> np.ndarray:
    """The probability of drawing each text such that the themes come in their shares.

    Within a theme every text weighs the same. With `lengths` the shares count tokens, without it they count texts.
    No text is drawn more than `most_repeated` times as often as the average one, so that a small theme is not
    learnt by heart. Texts of groups that have no share are never drawn.
    """
    theme_of_group = {group: number for number, (_, groups) in enumerate(shares.values()) for group in groups}
    theme_of_source = np.array([theme_of_group.get(source.group, -1) for source in sources])
    theme = theme_of_source[source_of_text]
    size = np.ones(len(theme)) if lengths is None else lengths.astype(float)
    weights = np.zeros(len(theme))
    for number, (share, _) in enumerate(shares.values()):
        members = theme == number
        if members.any():
            weights[members] = share / size[members].sum()
    weights = np.minimum(weights, most_repeated * weights.sum() / max(1, np.count_nonzero(weights)))
    return weights / weights.sum()
