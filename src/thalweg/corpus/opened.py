"""Vectors that were written, opened again: what is in them, and the way from a question to a passage."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from thalweg.assets import MODEL_NAME
from thalweg.checks import one_of, text, whole_number
from thalweg.corpus.arguments import PathName, as_names, check_loading
from thalweg.corpus.ranking import Groups, Numbers, Place, Ranking, restored
from thalweg.corpus.results import map_vectors, read_batches, read_metadata, read_rows, read_schema, read_table
from thalweg.corpus.rows import Metadata
from thalweg.corpus.where import Where
from thalweg.embedder.dtypes import Dtype
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.loading import load
from thalweg.errors import CheckpointError, CorpusError, InvalidInputError
from thalweg.models.quantized import Quantization
from thalweg.pooling.vectors import FloatArray, finish
from thalweg.system.cached import cached_property
from thalweg.tokenization.backend import SpecialTokens

DOCUMENT = ("id", "path", "row")
"""What tells a document from the others of a file; ids alone may repeat."""

_TEXT = ("char_start", "char_end", "text")
_WHITE_SPACE = "".join(character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace())


class Hit(NamedTuple):
    """One row found.

    score: by the model's own measure, larger is nearer; row: everything that was stored with its vector; file: the
    corpus it is from.
    """

    score: float
    row: dict[str, Any]
    file: Path


class Corpus:
    """One file of vectors, or several that are searched as one. Made by `open_corpus`.

    files: each with its metadata; metadata: that of the first.
    """

    def __init__(self, files: dict[Path, Metadata], model: str | Path | Embedder | None, options: dict[str, Any]):
        self.files = files
        self.metadata = next(iter(files.values()))
        self._model = model
        self._options = options

    def __repr__(self) -> str:
        return f"Corpus({', '.join(map(str, self.files))}: {len(self):,} vectors of {self.metadata.dimension} numbers)"

    def __len__(self) -> int:
        """The number of vectors."""
        return sum(metadata.rows for metadata in self.files.values())

    @property
    def named_model(self) -> str | None:
        """The model that the file names, where that is the one to be loaded; None for the one that thalweg ships, and
        where another was given. A file that somebody else wrote may name any."""
        return None if self._model is not None or self.metadata.model == MODEL_NAME else self.metadata.model

    @cached_property
    def embedder(self) -> Embedder:
        """The model that the vectors are from, loaded when it is first needed.

        Raises:
            CheckpointError: it is not on this machine; nothing is fetched unless it was named by `open_corpus`.
            CorpusError: it is another model than that of the vectors.
        """
        if isinstance(self._model, Embedder):
            embedder = self._model
        elif self.named_model is None:
            embedder = load(self._model, **self._options)
        else:
            name = self.named_model
            options = {**self._options, "revision": self._options["revision"] or self.metadata.revision}
            try:
                embedder = load(name, local_files_only=True, **options)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; pass --model {name} to fetch it, if you trust it") from error
        for path, metadata in self.files.items():
            _check_model(path, metadata, embedder)
        return embedder

    @overload
    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: str | pc.Expression | None = None,
        by: Literal["section", "document"] = "section",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        query: list[str] | tuple[str, ...],
        k: int = 10,
        *,
        where: str | pc.Expression | None = None,
        by: Literal["section", "document"] = "section",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: str | list[str] | tuple[str, ...],
        k: int = 10,
        *,
        where: str | pc.Expression | None = None,
        by: Literal["section", "document"] = "section",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """The `k` rows nearest to a question, nearest first; of several questions a list each, in one pass.

        Every vector is compared: the result is exact. Equal scores keep the order of the files and their rows, and rows
        whose text is empty or white space are left out. Fewer than `k` are found only where there are no more. The
        question stays float32 whatever the precision of the rows: int8 and uint8 are set back to numbers, binary to ±1.

        Memory holds one batch of vectors (16 MiB as float32, with some copies), its scores for at most 256 questions,
        and for each question k places and in the end k rows.

        Args:
            query: a text, or several.
            where: looks only at rows for which this is true: a `pyarrow.compute.Expression` on the stored columns, or
                SQL such as "n_tokens > 20 and path like '%.md'" (needs `pip install 'thalweg[search]'`).
            by: "section": rows; "document": the best row of each document, each document once.
            prompt, prompt_name: as for `Embedder.encode_query`.

        Raises:
            InvalidInputError: an argument that cannot be used.
            CorpusError: the vectors are another model's, or a file is damaged.
            CheckpointError: the model is not on this machine.
            MissingExtraError: SQL needs sqlglot, which is not installed.
        """
        queries = _checked_queries(query)
        k = whole_number("k", k, 1)
        one_of("by", by, ("section", "document"))
        if prompt is not None and prompt_name is not None:
            raise InvalidInputError("prompt and prompt_name exclude each other")
        schemas = {path: read_schema(path) for path in self.files}
        wheres = {path: None if where is None else Where(where, schema, str(path)) for path, schema in schemas.items()}
        encoded = self.embedder.encode_query(
            queries, normalize_embeddings=False, prompt=prompt, prompt_name=prompt_name
        )
        # Cut and scaled as the documents were.
        vectors = finish(encoded, normalize=self.metadata.normalized, truncate_dim=self.metadata.dimension)

        def found(*, with_texts: bool) -> tuple[list[list[Place]], dict[tuple[int, int], dict[str, Any]]]:
            ranking = Ranking(vectors, k, self.embedder.embedding_config.similarity, documents=by == "document")
            for file, (path, metadata) in enumerate(self.files.items()):
                _rank(ranking, file, path, metadata, schemas[path], wheres[path], by=by, with_texts=with_texts)
            places = ranking.places()
            return places, self._rows(places)

        # Texts are read of hits only. Where one of these has none, once more, and with an eye on all texts.
        places, rows = found(with_texts=False)
        if any(map(_blank, rows.values())):
            places, rows = found(with_texts=True)
        paths = list(self.files)
        hits = [
            [Hit(place.score, dict(rows[place.file, place.number]), paths[place.file]) for place in each]
            for each in places
        ]
        return hits[0] if isinstance(query, str) else hits

    def vectors(self) -> FloatArray:
        """(n, d) float32: all vectors, restored from the stored precision, in the order of the rows.

        Those of one .npy file of float32 stay on the disk and are read as they are looked at (read-only); else n · d ·
        4 bytes of memory. `vector_batches` gives them bit by bit.

        Raises:
            CorpusError: a file is damaged.
        """
        (path, *others), metadata = self.files, self.metadata
        if not others and path.suffix.lower() == ".npy" and metadata.precision == "float32":
            for _ in self.vector_batches():
                pass  # each is checked
            return map_vectors(path)
        vectors = np.empty((len(self), metadata.dimension), np.float32)
        at = 0
        for batch in self.vector_batches():
            vectors[at : at + len(batch)] = batch
            at += len(batch)
        return vectors

    def vector_batches(self) -> Iterator[FloatArray]:
        """`vectors` in batches (≤ n, d) of at most 16 MiB.

        Raises:
            CorpusError: a file is damaged.
        """
        for path, metadata in self.files.items():
            for batch in read_batches(path, metadata):
                vectors = restored(batch.vectors, metadata)
                if not np.isfinite(vectors).all():
                    raise CorpusError(
                        f"{path} is damaged: it holds numbers that are not finite; embed the corpus again"
                    )
                yield vectors

    def to_arrow(self) -> Any:
        """A `pyarrow.Table` of everything that was stored: the columns, and the vectors as the precision stores them.

        Raises:
            CorpusError: a file is damaged, or columns of several files do not fit together.
        """
        tables = [read_table(path, metadata) for path, metadata in self.files.items()]
        try:
            return pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]
        except pa.ArrowException as error:
            raise CorpusError(
                f"the columns of {', '.join(map(str, self.files))} do not fit together ({error}); open each by itself"
            ) from error

    def _rows(self, places: list[list[Place]]) -> dict[tuple[int, int], dict[str, Any]]:
        """The stored row of each place."""
        wanted: dict[int, set[int]] = {}
        for place in (place for each in places for place in each):
            wanted.setdefault(place.file, set()).add(place.number)
        paths = list(self.files)
        return {
            (file, number): row
            for file, numbers in wanted.items()
            for number, row in read_rows(paths[file], sorted(numbers)).items()
        }


def open_corpus(
    path: PathName | Sequence[PathName],
    *,
    model: str | Path | Embedder | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
    quantize: Quantization | None = None,
    special_tokens: SpecialTokens | None = None,
    max_uncut_chars: int | None = None,
) -> Corpus:
    """Open what `embed_corpus` or `thalweg embed` has written, to search it or to take its vectors.

    Nothing in a file is trusted: what does not fit its metadata is an error.

    Args:
        path: .parquet, .jsonl or .npy; several of one model are searched as one.
        model: None: the one that the file names, from this machine only. A name or a folder loads that (a hub id is
            fetched); an `Embedder` is taken as it is. It must be the model that the vectors are from.
        revision, device, dtype, quantize, special_tokens, max_uncut_chars: as for `load`, which is called when the
            model is first needed. None of them goes with an `Embedder`.

    Raises:
        CorpusError: a file was not written by thalweg, or several do not fit together.
        InvalidInputError: an argument that cannot be used.
    """
    options = {
        "revision": revision,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "special_tokens": special_tokens,
        "max_uncut_chars": max_uncut_chars,
    }
    check_loading(model, options)
    files = {each: read_metadata(each) for each in map(Path, as_names("path", path))}
    (first, metadata), *others = files.items()
    for other, its in others:
        for name in ("fingerprint", "dimension", "normalized"):
            if getattr(its, name) != getattr(metadata, name):
                raise CorpusError(
                    f"{first} and {other} cannot be searched together: {name} is {getattr(metadata, name)} in the one "
                    f"and {getattr(its, name)} in the other"
                )
    return Corpus(files, model, options)


def _checked_queries(query: Any) -> list[str]:
    if isinstance(query, str):
        return [query]
    if not isinstance(query, list | tuple):
        raise InvalidInputError(f"query must be a str or a list of them, got {type(query).__name__}: {query!r:.80}")
    queries = [text(f"query[{at}]", each) for at, each in enumerate(query)]
    if not queries:
        raise InvalidInputError("query is an empty list; give at least one question")
    return queries


def _check_model(path: Path, metadata: Metadata, embedder: Embedder) -> None:
    if embedder.fingerprint != metadata.fingerprint:
        raise CorpusError(
            f"{path} holds vectors of {metadata.model or 'the shipped model'} (fingerprint {metadata.fingerprint}), "
            f"but {embedder.name} has fingerprint {embedder.fingerprint}: {_cure(metadata, embedder)}"
        )
    if metadata.dimension > embedder.dimension:
        raise CorpusError(
            f"{path} is damaged: its metadata says {metadata.dimension} dimensions, but {embedder.name} has "
            f"{embedder.dimension}; embed the corpus again"
        )


def _cure(metadata: Metadata, embedder: Embedder) -> str:
    for choice in get_args(SpecialTokens):
        if embedder.fingerprint_reading(choice) == metadata.fingerprint:
            return (
                f"the two differ in how special tokens are read; pass --special-tokens {choice} (in Python "
                f"special_tokens={choice!r})"
            )
    return "pass the right --model, or embed again"


def _rank(
    ranking: Ranking,
    file: int,
    path: Path,
    metadata: Metadata,
    schema: pa.Schema,
    where: Where | None,
    *,
    by: str,
    with_texts: bool,
) -> None:
    """All rows of a file that count."""
    grouped = [name for name in DOCUMENT if by == "document" and name in schema.names]
    texts = [name for name in _TEXT if with_texts and name in schema.names]
    columns = list(dict.fromkeys([*grouped, *texts, *(where.columns if where is not None else ())]))
    if where is not None and not columns:
        columns = schema.names[:1]  # a condition on no column

    def chosen(table: Any) -> Numbers:
        kept = np.arange(table.num_rows) if where is None else where.rows(table)
        return kept[~_blanks(table.select(texts).take(pa.array(kept)))] if with_texts else kept

    for batch in read_batches(path, metadata, columns, None if where is None and not with_texts else chosen):
        groups = Groups(batch.columns.select(grouped)) if grouped else None
        ranking.add(path, file, batch.numbers, restored(batch.vectors, metadata), groups)


def _blank(row: dict[str, Any]) -> bool:
    """Whether there is nothing to read in a row: white space, or nothing at all.

    Without a stored text it is known of empty ones only; of a long document only the beginning is stored.
    """
    n_characters = row["char_end"] - row["char_start"]
    stored = row.get("text")
    return n_characters == 0 or (stored is not None and len(stored) >= n_characters and not stored.strip())


def _blanks(table: Any) -> np.ndarray[Any, Any]:
    """(n,) bool: `_blank` of every row."""
    n_characters = pc.subtract(table.column("char_end"), table.column("char_start"))
    blank = pc.equal(n_characters, 0)
    if "text" in table.schema.names:
        stored = table.column("text")
        bare = pc.equal(pc.utf8_length(pc.utf8_trim(stored, characters=_WHITE_SPACE)), 0)
        blank = pc.or_kleene(blank, pc.and_kleene(bare, pc.greater_equal(pc.utf8_length(stored), n_characters)))
    return np.array(pc.fill_null(blank, False).to_pylist(), bool)
