"""A source to Arrow files that are memory-mapped: read once, checked row by row, kept in the cache of `datasets`.

A cached source is a folder; it appears whole or not at all, and is named by a digest of everything that decides what is
in it: files with sizes and times, instructions, options.

    part-K.arrow     rows with K negatives: anchor, positive, negative_1, …, negative_K, and instruction if asked
    part-K.hashes    uint64, one a row: equal for rows that are equal up to case, white space and forms of characters
    summary.json     counts and what the card should know; written last
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.integrations.mteb_instructions import paper_instructions
from thalweg.training.data.extras import require_datasets
from thalweg.training.data.files import read_rows
from thalweg.training.data.rows import Example, example_columns, read_example
from thalweg.training.data.sources import Source

FORMAT = 1
"""Format of a cached source; others are made anew."""

READ = "read"
EMPTY_QUERY, EMPTY_POSITIVE, EMPTY_NEGATIVE = "empty query", "empty positive", "empty negative"
"""Why rows are dropped."""

BEYOND_MAXIMUM = "negatives beyond the maximum"

_SUMMARY = "summary.json"
_PART = re.compile(r"part-(\d+)\.arrow")
_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 4 << 20
_NAMES_KEPT = 20


@dataclass(frozen=True)
class Options:
    """What decides which texts of a row are kept.

    seed: of the draws; max_negatives: of a row, None for all; instructions: those of rows go before the anchor
    ("prefix"), into a column of their own ("column"), or nowhere ("none").
    """

    seed: int = 0
    max_negatives: int | None = None
    instructions: Literal["prefix", "column", "none"] = "prefix"


class Part(NamedTuple):
    """Rows with the same number of negatives."""

    n_negatives: int
    path: Path

    def hashes(self) -> npt.NDArray[np.uint64]:
        return np.fromfile(self.path.with_suffix(".hashes"), dtype=np.uint64)


@dataclass(frozen=True)
class Built:
    """A source as it lies in the cache.

    parts: those with the most rows first; instruction: of all queries, where they have one in common that is not in the
    anchors; counts: rows read, and dropped by reason; notes: texts of rows that stayed and were left out, by reason;
    licences, sources: those that rows state, the most frequent first.
    """

    parts: tuple[Part, ...]
    instruction: str
    counts: dict[str, int]
    notes: dict[str, int]
    licences: list[str]
    sources: list[str]


def build(source: Source, options: Options) -> Built:
    """The source in the cache, read now if it is not there yet. Other processes wait for the first to have read it.

    Raises:
        CorpusError: a row that cannot be used, or a file that cannot be read.
        MissingExtraError: datasets is not installed.
    """
    from filelock import FileLock

    cache = Path(require_datasets().config.HF_DATASETS_CACHE) / "thalweg"
    cache.mkdir(parents=True, exist_ok=True)
    label = re.sub(r"[^\w.-]", "_", source.name)[:60]
    folder = cache / f"{label}-{_digest(source, options)}"
    with FileLock(f"{folder}.lock"):
        if not (folder / _SUMMARY).is_file():
            fresh = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
            try:
                _read_in_common(source, options, fresh)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return _built(folder)


def _built(folder: Path) -> Built:
    summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    sizes = {int(match[1]): path for path in folder.iterdir() if (match := _PART.fullmatch(path.name))}
    parts = [Part(number, path) for number, path in sorted(sizes.items())]
    parts.sort(key=lambda part: -part.path.with_suffix(".hashes").stat().st_size)
    return Built(tuple(parts), **summary)


def _digest(source: Source, options: Options) -> str:
    stated = {
        "format": FORMAT,
        "files": [[os.path.realpath(file.path), file.size, file.modified_ns] for file in source.files],
        "kinds": [file.kind for file in source.files],
        "instructions": source.instructions,
        "name": source.name,  # the draws depend on it
        **asdict(options),
    }
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]


class _Differ(Exception):
    """Rows have different instructions."""


def _read_in_common(source: Source, options: Options, folder: Path) -> None:
    """Read with one instruction for all rows; as soon as there is a second one, again with each before its query."""
    folder.mkdir()
    try:
        _read(source, options, folder, in_common=options.instructions == "prefix")
    except _Differ:
        shutil.rmtree(folder)
        folder.mkdir()
        _read(source, options, folder, in_common=False)


def _read(source: Source, options: Options, folder: Path, *, in_common: bool) -> None:
    common: str | None = None
    counts, notes = Counter({READ: 0}), Counter[str]()
    licences, sources = Counter[str](), Counter[str]()
    draw = random.Random(f"{options.seed}/{source.name}")
    with ExitStack() as stack:
        writers: dict[int, _Writer] = {}
        for number, example in enumerate(_examples(source)):
            counts[READ] += 1
            _count(licences, example.licence)
            _count(sources, example.source)
            reason = _unusable(example, options)
            if reason is not None:
                counts[reason] += 1
                continue
            positive = _positive(example, draw, notes)
            negatives, key = _negatives(example, positive, options, draw, notes)
            if len(negatives) not in writers:
                with_column = options.instructions == "column"
                writer = _Writer(folder / f"part-{len(negatives)}.arrow", len(negatives), with_column)
                writers[len(negatives)] = stack.enter_context(writer)
            instruction = _instruction(source, example, number, options)
            if in_common:
                if common is not None and common != instruction:
                    raise _Differ
                common, instruction = instruction, ""
            elif options.instructions == "prefix":
                instruction = query_prompt(instruction)
            writers[len(negatives)].append(example.query, positive, negatives, instruction, key)
    summary = {
        "instruction": common or "",
        "counts": dict(counts),
        "notes": dict(notes),
        "licences": [name for name, _ in licences.most_common(_NAMES_KEPT)],
        "sources": [name for name, _ in sources.most_common(_NAMES_KEPT)],
    }
    (folder / _SUMMARY).write_text(json.dumps(summary, ensure_ascii=False), encoding="utf-8")


def _examples(source: Source) -> Iterator[Example]:
    for file in source.files:
        for place, row in read_rows(file, example_columns):
            yield read_example(row, place)


def _unusable(example: Example, options: Options) -> str | None:
    """Why a row is dropped: a triple with an empty text, as the paper drops them. None: it is not.

    Where no negatives are wanted at all, an empty one does no harm.
    """
    if not example.query.strip():
        return EMPTY_QUERY
    if not any(text.strip() for text in example.positives):
        return EMPTY_POSITIVE
    if options.max_negatives != 0 and example.negatives and not any(text.strip() for text in example.negatives):
        return EMPTY_NEGATIVE
    return None


def _positive(example: Example, draw: random.Random, notes: Counter[str]) -> str:
    """One of the positives of a row, at random."""
    positives = [text for text in example.positives if text.strip()]
    notes["further positives"] += len(positives) - 1
    return positives[0] if len(positives) == 1 else draw.choice(positives)


def _negatives(
    example: Example, positive: str, options: Options, draw: random.Random, notes: Counter[str]
) -> tuple[list[str], int]:
    """The negatives that are kept, at random where there are too many, and the hash of the row with all of them.

    One that is a positive of its own row would be taught to be near and far at once.
    """
    given = [text for text in example.negatives if text.strip()]
    notes["empty negatives of rows with others"] += len(example.negatives) - len(given)
    positives = {normalised(text) for text in example.positives} if given else set()
    keys = [normalised(text) for text in given]
    negatives = [text for text, key in zip(given, keys, strict=True) if key not in positives]
    notes["negatives that are positives"] += len(given) - len(negatives)
    key = row_hash(example.instruction, example.query, positive, *keys)
    if options.max_negatives is not None and len(negatives) > options.max_negatives:
        notes[BEYOND_MAXIMUM] += len(negatives) - options.max_negatives
        negatives = draw.sample(negatives, options.max_negatives)
    return negatives, key


def _instruction(source: Source, example: Example, number: int, options: Options) -> str:
    """That of a row: its own, else the source's, in turn where there are several; "" without one."""
    if options.instructions == "none":
        return ""
    own = example.instruction.strip()
    return own or (source.instructions[number % len(source.instructions)] if source.instructions else "")


def query_prompt(instruction: str) -> str:
    """What stands before the queries of an instruction; "" without one."""
    return _template().format(instruction=instruction) if instruction else ""


@functools.cache
def _template() -> str:
    return paper_instructions().template


def normalised(text: str) -> str:
    """A text without what makes no difference to a reader: case, white space, forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_hash(*texts: str) -> int:
    """64 bits of the normalised texts, in their order."""
    digest = hashlib.blake2b("\0".join(map(normalised, texts)).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _count(names: Counter[str], name: str) -> None:
    """Bounded: a column with another value in every row names nothing."""
    if name and (name in names or len(names) < 1000):
        names[name] += 1


class _Writer:
    """Rows with the same number of negatives, written in batches of bounded size."""

    def __init__(self, path: Path, n_negatives: int, with_instruction: bool) -> None:
        import pyarrow as pa

        names = ["anchor", "positive", *(f"negative_{i + 1}" for i in range(n_negatives))]
        self._schema = pa.schema([(name, pa.string()) for name in names + ["instruction"] * with_instruction])
        self._path, self._with_instruction = path, with_instruction
        self._rows: list[list[str]] = []
        self._keys: list[int] = []
        self._characters = 0

    def __enter__(self) -> _Writer:
        import pyarrow as pa

        self._hashes: BinaryIO = open(self._path.with_suffix(".hashes"), "wb")
        self._writer: Any = pa.ipc.new_stream(str(self._path), self._schema)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._flush()
        self._writer.close()
        self._hashes.close()

    def append(self, query: str, positive: str, negatives: list[str], instruction: str, key: int) -> None:
        if self._with_instruction:
            row = [query, positive, *negatives, instruction]
        else:
            row = [instruction + query, positive, *negatives]
        self._rows.append(row)
        self._keys.append(key)
        self._characters += sum(map(len, row))
        if len(self._rows) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            np.array(self._keys, dtype=np.uint64).tofile(self._hashes)
            self._rows, self._keys, self._characters = [], [], 0
