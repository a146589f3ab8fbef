"""From shards of text to what training reads: token ids of the student and vectors of the teacher, as flat arrays.

    python cache.py tokenize SHARD --tokenizer DIR --out DIR [--whole]         one shard: texts to be taught, or, with
                                                                               --whole, its pairs and documents
    python cache.py thin CACHE --out DIR [--short N] [--sentences N] [--passages N]    a sample for the teacher
    python cache.py teach OUT… --teacher DIR                                   adds the teacher's vectors, GPU or CPU

A *unit* is a piece of at most `UNIT_WORDS` words, which the teacher (256 tokens) sees whole. A *text* is a run of
neighbouring units: one for a sentence or passage, many for a whole document. Arrays in OUT (U units, T texts):

    student.npy uint16, student_at.npy int64 [U + 1]      token ids, no EOS
    text.npy uint8, text_at.npy int64 [U + 1]             the units in UTF-8
    texts.npy int64 [T, 4]        first unit, units, source, 1 if a whole document
    pairs.npy int64 [n, 3]        text of the query, text of the positive, source; only with --whole
    works.npy uint32 [T]          the same number for documents of one work (data.py), 0 for none; only with --whole
    vectors.npy float16 [U, 384]  written by `teach`
    tokenizer.sha256              of the student's tokenizer.json: ids mean nothing under another one
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from data import (
    DISTILLATION_SHARES,
    SHORT_SHARES,
    Shard,
    Source,
    chunks,
    read_shard,
    sampling_weights,
    sentences,
    work_of,
)

from edits import Edits, Headlines

UNIT_WORDS = 170
SENTENCE_SHARE = 0.5  # of the passages with several sentences, how many also give each sentence on its own
EDITS = {"coco": 4, "tatoeba": 1, "wikisplit": 1}  # edited sentences for each sentence of the group
EDITED_WORDS = 18  # of longer sentences none are made
STATEMENTS = 12_000  # new sentences per shard
HEADLINES = {"wikisplit": 1, "onestopenglish": 2, "masc": 2, "factbook": 1, "us-speeches": 1, "nltk-publicdomain": 1}
SHORT_TOKENS = (3, 28)  # what `thin` counts as short
SENTENCE_TOKENS = (6, 32)
TEACH_UNITS = 2048
PASSAGE_TOKENS = (48, 240)


class Table:
    """Collects units and texts; a text stands once."""

    def __init__(self) -> None:
        self.units: list[str] = []
        self.texts: list[tuple[int, int, int, int]] = []
        self._known: dict[str, int] = {}

    def add(self, text: str, source: int, document: bool = False) -> int:
        """The text's number."""
        if text not in self._known:
            pieces = chunks(text, UNIT_WORDS) or [text]
            self._known[text] = len(self.texts)
            self.texts.append((len(self.units), len(pieces), source, int(document)))
            self.units += pieces
        return self._known[text]


def collect_short(shard: Shard, rng: np.random.Generator) -> Table:
    """Texts to be taught: passages, both sides of pairs, sentences of both, and edited sentences."""
    table = Table()
    passages = shard.texts + [(source, text) for source, *pair in shard.pairs for text in pair]
    for (source, text), cut in zip(passages, rng.random(len(passages)) < SENTENCE_SHARE, strict=True):
        table.add(text, source)
        if cut:
            for sentence in sentences(text):
                if sentence.count(" ") >= 2:
                    table.add(sentence, source)
    add_edits(shard, table, rng)
    add_headlines(shard, table, rng)
    return table


def collect_whole(shard: Shard) -> tuple[Table, list[tuple[int, int, int]], dict[int, int]]:
    """Pairs and whole documents, the latter with their summary, or else title, as pairs; the pairs' numbers; and the
    work of each document."""
    table, works = Table(), {}
    pairs = [(table.add(query, s), table.add(positive, s), s) for s, query, positive in shard.pairs]
    for source, title, summary, text in shard.documents:
        whole = table.add(text, source, document=True)
        works[whole] = zlib.crc32(work_of(title).encode())  # 0 of nothing
        if summary or len(title.split()) > 3:
            pairs.append((table.add(summary or title, source), whole, source))
    return table, pairs, works


def add_edits(shard: Shard, table: Table, rng: np.random.Generator) -> None:
    """Add edited and new sentences as texts of a source of their own."""
    shard.sources.append(Source("edited", "edited from " + ", ".join(EDITS)))
    number = len(shard.sources) - 1
    found = [(shard.sources[source].group, text) for source, text in shard.texts]
    found += [(shard.sources[source].group, text) for source, *pair in shard.pairs for text in pair]
    of_group = {group: list(dict.fromkeys(text for g, text in found if g == group)) for group in EDITS}
    edits = Edits(of_group["coco"] + of_group["tatoeba"])
    for group, texts in of_group.items():
        for text in texts:
            if text.count(" ") < EDITED_WORDS and len(sentences(text)) == 1:
                for _ in range(EDITS[group]):
                    if edited := edits(text, rng):
                        table.add(edited, number)
    for _ in range(STATEMENTS):
        table.add(edits.statement(rng), number)


def add_headlines(shard: Shard, table: Table, rng: np.random.Generator) -> None:
    """Add headlines made from sentences, as texts of a source of their own."""
    shard.sources.append(Source("headlines", "headlines from " + ", ".join(HEADLINES)))
    number = len(shard.sources) - 1
    found = [(shard.sources[source].group, text) for source, *texts in (*shard.texts, *shard.pairs) for text in texts]
    of_group = [(g, s) for g, text in dict.fromkeys(found) if g in HEADLINES for s in sentences(text)]
    headlines = Headlines([sentence for _, sentence in of_group])
    for group, sentence in of_group:
        for _ in range(HEADLINES[group]):
            if made := headlines(sentence, rng):
                table.add(made, number)


def encode(tokenizer_json: Path, texts: Sequence[str], batch: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Flat uint16 ids of all texts, no special tokens, and where each begins."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    flat, lengths = [], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), batch):
        ids = [e.ids for e in tokenizer.encode_batch_fast(list(texts[start : start + batch]), add_special_tokens=False)]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        flat.append(np.fromiter((i for row in ids for i in row), np.uint16, int(lengths[-1].sum())))
    return np.concatenate(flat), np.cumsum(np.concatenate(lengths))


def fingerprint(tokenizer: Path) -> str:
    return hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest()


def check_tokenizer(caches: Iterable[Path], tokenizer: Path) -> None:
    """Stop if a cache was made with another tokenizer."""
    for cache in caches:
        if (cache / "tokenizer.sha256").read_text().strip() != fingerprint(tokenizer):
            raise SystemExit(f"{cache} was made with another tokenizer than {tokenizer}; run cache.py tokenize again")


def tokenize(shard_path: Path, tokenizer: Path, out: Path, whole: bool) -> None:
    shard = read_shard(shard_path)
    if whole:
        table, pairs, works = collect_whole(shard)
    else:
        table, pairs, works = collect_short(shard, np.random.default_rng(0)), [], {}
    out.mkdir(parents=True, exist_ok=True)
    flat, at = encode(tokenizer / "tokenizer.json", table.units)
    np.save(out / "student.npy", flat)
    np.save(out / "student_at.npy", at)
    raw = [unit.encode() for unit in table.units]
    np.save(out / "text.npy", np.frombuffer(b"".join(raw), np.uint8))
    np.save(out / "text_at.npy", np.cumsum([0, *map(len, raw)]))
    np.save(out / "texts.npy", np.array(table.texts, np.int64))
    np.save(out / "pairs.npy", np.array(pairs, np.int64).reshape(-1, 3))
    np.save(out / "works.npy", np.array([works.get(text, 0) for text in range(len(table.texts))], np.uint32))
    (out / "tokenizer.sha256").write_text(fingerprint(tokenizer) + "\n")
    sources = [[source.group, source.name, source.kind] for source in shard.sources]
    (out / "sources.json").write_text(json.dumps(sources))  # last: the folder is complete
    print(f"{out}: {len(table.units)} units, {len(table.texts)} texts, {len(pairs)} pairs, {at[-1]} tokens", flush=True)


def thin(
    whole: Path,
    out: Path,
    short: int,
    sentences: int,
    passages: int,
    tokens: tuple[int, int] | None,
    themes: Sequence[str],
    seed: int,
    beside: Sequence[Path],
) -> None:
    """So many texts of one unit for the teacher, in the shares of their themes, by count: everyday ones, and sentences
    and passages of all kinds, or of some themes only. Texts of the samples `beside` are left out."""
    rng = np.random.default_rng(seed)
    names = (whole / "sources.json").read_text()
    sources = [Source(*name) for name in json.loads(names)]
    table, at = np.load(whole / "texts.npy"), np.load(whole / "student_at.npy")
    single = np.flatnonzero((table[:, 1] == 1) & (table[:, 3] == 0))
    if beside:
        known = {text for sample in beside for text in _texts(sample)}
        texts = _texts(whole)
        single = np.array([row for row in single if texts[table[row, 0]] not in known])
    length = np.diff(at)[table[single, 0]]
    chosen = []
    all_kinds = {theme: share for theme, share in DISTILLATION_SHARES.items() if theme in (themes or [theme])}
    for number, shares, (least, most) in (
        (short, SHORT_SHARES, tokens or SHORT_TOKENS),
        (sentences, all_kinds, tokens or SENTENCE_TOKENS),
        (passages, all_kinds, PASSAGE_TOKENS),
    ):
        if number == 0:
            continue
        rows = np.setdiff1d(single[(length >= least) & (length <= most)], np.concatenate([np.zeros(0, int), *chosen]))
        chosen.append(_draw(rows, sampling_weights(sources, table[rows, 2], shares), number, rng))
    kept = table[np.sort(np.concatenate(chosen))]
    out.mkdir(parents=True, exist_ok=True)
    for name in ("student", "text"):
        starts = np.load(whole / f"{name}_at.npy")
        size = np.diff(starts)[kept[:, 0]]
        np.save(out / f"{name}.npy", np.load(whole / f"{name}.npy", mmap_mode="r")[_spans(starts[kept[:, 0]], size)])
        np.save(out / f"{name}_at.npy", np.cumsum(np.append(0, size)))
    kept[:, 0] = np.arange(len(kept))
    np.save(out / "texts.npy", kept)
    np.save(out / "pairs.npy", np.zeros((0, 3), np.int64))
    (out / "tokenizer.sha256").write_text((whole / "tokenizer.sha256").read_text())
    (out / "sources.json").write_text(names)
    print(f"{out}: {len(kept)} texts", flush=True)


def _texts(cache: Path) -> list[bytes]:
    raw, ends = np.load(cache / "text.npy").tobytes(), np.load(cache / "text_at.npy").tolist()
    return [raw[start:end] for start, end in itertools.pairwise(ends)]


def _spans(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The indices of all runs first … first + count - 1, one after the other."""
    ends = np.cumsum(count)
    return np.arange(ends[-1]) + np.repeat(first - (ends - count), count)


def _draw(items: np.ndarray, weights: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` distinct items."""
    most = min(most, np.count_nonzero(weights))
    return rng.choice(items, most, replace=False, p=weights)


def teach(outs: Iterable[Path], teacher: Path, bfloat16: bool) -> None:
    """The teacher's mean-pooled, normalised vector of every unit.

    Random units first, `TEACH_UNITS` at a time, so that training can begin before all are done: rows of zeros are not
    there yet. Goes on where it was stopped.
    """
    import torch
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_tokens = 1 << 18 if device == "cuda" else 1 << 11  # on a CPU: what stays in cache
    dtype = torch.float16 if device == "cuda" else torch.bfloat16 if bfloat16 else torch.float32
    model = AutoModel.from_pretrained(teacher, dtype=dtype)
    model = model.to(device).eval()
    for out in outs:
        flat, at = encode(teacher / "tokenizer.json", [text.decode() for text in _texts(out)])
        lengths = np.minimum(np.diff(at), 254)
        ids = torch.from_numpy(flat.astype(np.int32)).to(device)
        path, shape = out / "vectors.npy", (len(lengths), model.config.hidden_size)
        vectors = np.lib.format.open_memmap(path, "r+" if path.exists() else "w+", np.float16, shape)
        began = time.time()
        order = np.random.default_rng(0).permutation(len(lengths))
        for start in range(0, len(order), TEACH_UNITS):
            rows = order[start : start + TEACH_UNITS]
            if vectors[rows].any(1).all():
                continue
            rows = rows[np.argsort(-lengths[rows], kind="stable")]
            while len(rows):
                count = max(1, batch_tokens // (int(lengths[rows[0]]) + 2))
                now, rows = rows[:count], rows[count:]
                vectors[now] = _teacher_vectors(model, ids, at[now], lengths[now])
            vectors.flush()
            print(f"{out}: {start + TEACH_UNITS} of {len(order)} units in {time.time() - began:.0f} s", flush=True)


def _teacher_vectors(model: Any, ids: Any, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(n, d) float16 of the texts ids[starts : starts + lengths]."""
    import torch

    cls, sep = 101, 102
    with torch.inference_mode():
        start, size = (torch.from_numpy(x).to(ids.device)[:, None] for x in (starts, lengths))
        column = torch.arange(int(lengths.max()) + 2, device=ids.device)[None]
        token = ids[(start + column - 1).clamp(0, len(ids) - 1)].long()
        token = torch.where(column == 0, cls, torch.where(column == size + 1, sep, token))
        mask = column <= size + 1
        hidden = model(input_ids=token * mask, attention_mask=mask.long()).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=1).half().cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("tokenize")
    one.add_argument("shard", type=Path)
    one.add_argument("--whole", action="store_true", help="pairs and documents, instead of texts to be taught")
    one.add_argument("--tokenizer", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    two = commands.add_parser("thin")
    two.add_argument("cache", type=Path)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--short", type=int, default=0)
    two.add_argument("--sentences", type=int, default=0)
    two.add_argument("--passages", type=int, default=0)
    two.add_argument("--tokens", type=int, nargs=2, help="least and most of a short text or sentence")
    two.add_argument("--themes", nargs="+", default=[], choices=list(DISTILLATION_SHARES), help="of the last two")
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--beside", type=Path, nargs="+", default=[], help="earlier samples, whose texts are left out")
    three = commands.add_parser("teach")
    three.add_argument("out", type=Path, nargs="+")
    three.add_argument("--teacher", type=Path, required=True)
    three.add_argument("--bfloat16", action="store_true", help="for CPUs with instructions for it: twice as fast")
    args = parser.parse_args()
    if args.command == "tokenize":
        tokenize(args.shard, args.tokenizer, args.out, args.whole)
    elif args.command == "thin":
        thin(
            args.cache,
            args.out,
            args.short,
            args.sentences,
            args.passages,
            args.tokens,
            args.themes,
            args.seed,
            args.beside,
        )
    else:
        teach(args.out, args.teacher, args.bfloat16)


if __name__ == "__main__":
    main()
