"""From shards of text to what training reads: token ids of the student and vectors of the teacher, as flat arrays.

    python cache.py tokenize SHARD --tokenizer DIR --teacher DIR --out DIR     one shard, CPU only
    python cache.py teach OUT… --teacher DIR                                   adds the teacher's vectors, GPU or CPU
    python cache.py thin CACHE --out DIR [--texts N …]                         a sample that a CPU can read

A *unit* is a piece of at most `UNIT_WORDS` words, which the teacher (256 tokens) sees whole. A *text* is a run of
neighbouring units: one for a sentence or passage, many for a whole document; its target is the mean of the units'
vectors. Arrays in OUT (U units, T texts):

    student.npy uint16, student_at.npy int64 [U + 1]      token ids, no EOS
    teacher.npy uint16, teacher_at.npy int64 [U + 1]      WordPiece ids, no special tokens
    texts.npy int64 [T, 4]        first unit, units, source, 1 if a whole document
    pairs.npy int64 [n, 3]        text of the query, text of the positive, source
    vectors.npy float16 [U, 384]  written by `teach`
    tokenizer.sha256              of the student's tokenizer.json: ids mean nothing under another one
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from data import CONTRASTIVE_SHARES, DISTILLATION_SHARES, Shard, Source, chunks, read_shard, sampling_weights, sentences

UNIT_WORDS = 170
SENTENCE_SHARE = 0.5  # of the passages with several sentences, how many also give each sentence on its own
DOCUMENT_SENTENCE_SHARE = 0.12  # likewise for the units of whole documents


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


def collect(shard: Shard, rng: np.random.Generator) -> tuple[Table, list[tuple[int, int, int]]]:
    """All texts of a shard, and its pairs as text numbers."""
    table = Table()
    pairs = [(table.add(query, s), table.add(positive, s), s) for s, query, positive in shard.pairs]
    passages = [(source, text) for source, text in shard.texts] + [(s, positive) for s, _, positive in shard.pairs]
    for source, text in shard.texts:
        table.add(text, source)
    for source, title, summary, text in shard.documents:
        whole = table.add(text, source, document=True)
        head = table.add(title, source)
        if summary:
            pairs.append((table.add(summary, source), whole, source))
            passages.append((source, summary))
        elif len(title.split()) > 3:
            pairs.append((head, whole, source))
        first, count, *_ = table.texts[whole]
        for unit in np.flatnonzero(rng.random(count) < DOCUMENT_SENTENCE_SHARE):
            for sentence in sentences(table.units[first + unit]):
                if sentence.count(" ") >= 3:
                    table.add(sentence, source)
    for (source, text), cut in zip(passages, rng.random(len(passages)) < SENTENCE_SHARE, strict=True):
        if cut:
            for sentence in sentences(text):
                if sentence.count(" ") >= 2:
                    table.add(sentence, source)
    return table, pairs


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


def tokenize(shard_path: Path, tokenizer: Path, teacher: Path, out: Path) -> None:
    shard = read_shard(shard_path)
    table, pairs = collect(shard, np.random.default_rng(0))
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in (("student", tokenizer), ("teacher", teacher)):
        flat, at = encode(folder / "tokenizer.json", table.units)
        np.save(out / f"{name}.npy", flat)
        np.save(out / f"{name}_at.npy", at)
    np.save(out / "texts.npy", np.array(table.texts, np.int64))
    np.save(out / "pairs.npy", np.array(pairs, np.int64))
    (out / "tokenizer.sha256").write_text(fingerprint(tokenizer) + "\n")
    sources = [[source.group, source.name, source.kind] for source in shard.sources]
    (out / "sources.json").write_text(json.dumps(sources))  # last: the folder is complete
    print(
        f"{out}: {len(table.units)} units, {len(table.texts)} texts, {len(pairs)} pairs, {at[-1]} teacher tokens",
        flush=True,
    )


@dataclass(frozen=True)
class Sample:
    """How much of a cache to keep; None keeps everything of the kind."""

    texts: int | None = None
    pairs: int | None = None
    documents: int | None = None
    document_units: int | None = None  # neighbouring units of each document, from a random place
    typical_tokens: int | None = None  # texts and pairs longer than this are drawn less often, by their length


def thin(whole: Path, out: Path, sample: Sample, seed: int) -> None:
    """A smaller cache; texts and pairs come in the shares of their themes, by count."""
    rng = np.random.default_rng(seed)
    names = (whole / "sources.json").read_text()
    sources = [Source(*name) for name in json.loads(names)]
    table, pairs = np.load(whole / "texts.npy"), np.load(whole / "pairs.npy")
    at = {name: np.load(whole / f"{name}_at.npy") for name in ("student", "teacher")}
    lengths = at["student"][table[:, 0] + table[:, 1]] - at["student"][table[:, 0]]

    def brevity(texts: np.ndarray) -> np.ndarray:
        return np.minimum(1, (sample.typical_tokens or np.inf) / np.maximum(1, lengths[texts]))

    is_document = table[:, 3] == 1
    documents = _draw(np.flatnonzero(is_document), None, sample.documents, rng)
    long_sided = is_document[pairs[:, 1]]
    weights = sampling_weights(sources, pairs[:, 2], CONTRASTIVE_SHARES) * brevity(pairs[:, 1]) * ~long_sided
    chosen = pairs[_draw(np.arange(len(pairs)), weights, sample.pairs, rng)]
    chosen = np.unique(np.concatenate([chosen, pairs[long_sided & np.isin(pairs[:, 1], documents)]]), axis=0)
    short = np.flatnonzero(~is_document)
    weights = sampling_weights(sources, table[short, 2], DISTILLATION_SHARES) * brevity(short)
    kept = np.unique(np.concatenate([_draw(short, weights, sample.texts, rng), documents, chosen[:, :2].ravel()]))

    first, count = table[kept, 0], table[kept, 1]
    if sample.document_units:
        cut = np.where(is_document[kept], np.minimum(count, sample.document_units), count)
        first, count = first + (rng.random(len(kept)) * (count - cut + 1)).astype(np.int64), cut
    units = _spans(first, count)
    ends = np.cumsum(count)
    number = np.full(len(table), -1)
    number[kept] = np.arange(len(kept))
    out.mkdir(parents=True, exist_ok=True)
    for name, starts in at.items():
        size = np.diff(starts)[units]
        np.save(out / f"{name}.npy", np.load(whole / f"{name}.npy", mmap_mode="r")[_spans(starts[units], size)])
        np.save(out / f"{name}_at.npy", np.concatenate([[0], np.cumsum(size)]))
    np.save(out / "texts.npy", np.stack([ends - count, count, table[kept, 2], table[kept, 3]], 1))
    np.save(out / "pairs.npy", np.stack([number[chosen[:, 0]], number[chosen[:, 1]], chosen[:, 2]], 1))
    (out / "tokenizer.sha256").write_text((whole / "tokenizer.sha256").read_text())
    (out / "sources.json").write_text(names)
    print(f"{out}: {len(units)} units, {len(kept)} texts, {len(chosen)} pairs, {size.sum()} teacher tokens", flush=True)


def _spans(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The indices of all runs first … first + count - 1, one after the other."""
    ends = np.cumsum(count)
    return np.arange(ends[-1]) + np.repeat(first - (ends - count), count)


def _draw(items: np.ndarray, weights: np.ndarray | None, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """At most `most` distinct items."""
    if most is None or most >= len(items):
        return items
    if weights is None:
        return rng.choice(items, most, replace=False)
    most = min(most, np.count_nonzero(weights))
    return rng.choice(items, most, replace=False, p=weights / weights.sum())


def teach(outs: Iterable[Path], teacher: Path) -> None:
    """The teacher's mean-pooled, normalised vector of every unit, longest units first so that batches are even."""
    import torch
    from transformers import AutoModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_tokens = 1 << 18 if device == "cuda" else 1 << 13  # on a CPU: what stays in cache
    model = AutoModel.from_pretrained(teacher, dtype=torch.float16 if device == "cuda" else torch.bfloat16)
    model = model.to(device).eval()
    cls, sep = 101, 102
    for out in outs:
        flat, at = np.load(out / "teacher.npy"), np.load(out / "teacher_at.npy")
        lengths = np.minimum(np.diff(at), 254)
        ids = torch.from_numpy(flat.astype(np.int32)).to(device)
        starts = torch.from_numpy(at[:-1]).to(device)
        order = np.argsort(-lengths, kind="stable")
        vectors = torch.empty(len(lengths), model.config.hidden_size, dtype=torch.float16, device=device)
        done, began, said = 0, time.time(), time.time()
        with torch.inference_mode():
            while done < len(order):
                width = int(lengths[order[done]]) + 2
                rows = order[done : done + max(1, batch_tokens // width)]
                index = torch.from_numpy(rows).to(device)
                size = torch.from_numpy(lengths[rows]).to(device)[:, None]
                column = torch.arange(width, device=device)[None]
                token = ids[(starts[index][:, None] + column - 1).clamp(0, len(ids) - 1)].long()
                token = torch.where(column == 0, cls, torch.where(column == size + 1, sep, token))
                mask = column <= size + 1
                hidden = model(input_ids=token * mask, attention_mask=mask.long()).last_hidden_state.float()
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                vectors[index] = torch.nn.functional.normalize(mean, dim=1).half()
                done += len(rows)
                if time.time() - said > 60:
                    said = time.time()
                    print(f"{out}: {done} of {len(order)} units in {said - began:.0f} s", flush=True)
        np.save(out / "vectors.npy", vectors.cpu().numpy())
        print(f"{out}: {len(lengths)} vectors", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("tokenize")
    one.add_argument("shard", type=Path)
    one.add_argument("--tokenizer", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    three = commands.add_parser("thin")
    three.add_argument("cache", type=Path)
    three.add_argument("--out", type=Path, required=True)
    three.add_argument("--seed", type=int, default=0)
    for item in fields(Sample):
        three.add_argument(f"--{item.name.replace('_', '-')}", type=int)
    two = commands.add_parser("teach")
    two.add_argument("out", type=Path, nargs="+")
    for command in (one, two):
        command.add_argument("--teacher", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "tokenize":
        tokenize(args.shard, args.tokenizer, args.teacher, args.out)
    elif args.command == "thin":
        thin(args.cache, args.out, Sample(**{f.name: getattr(args, f.name) for f in fields(Sample)}), args.seed)
    else:
        teach(args.out, args.teacher)


if __name__ == "__main__":
    main()
