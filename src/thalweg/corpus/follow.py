"""A text that has no end yet: its vectors are written while it arrives."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from thalweg.corpus.assemble import describe_output
from thalweg.corpus.documents import Document
from thalweg.corpus.manifest import Manifest
from thalweg.corpus.parts import Parts
from thalweg.corpus.passages import Passage
from thalweg.corpus.settings import Mode, Settings, check_free
from thalweg.corpus.writers import companions, json_line, metadata_path, numbers, parts_path
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CorpusError
from thalweg.inputs.encodings import PIECE
from thalweg.inputs.files import STDIN, TEXT, InputFile
from thalweg.pooling.vectors import to_precision
from thalweg.storage.durable import errors_named, write_durably


def follow_stdin(
    embedder: Embedder,
    out: Path,
    settings: Settings,
    *,
    encoding: str | None = None,
    mode: Mode = "new",
    on_row: Callable[[int, int], None] = lambda rows, tokens: None,
) -> int:
    """Embed the sections of stdin and write the row of each as soon as it is known, until stdin ends.

    The file can be read while it grows: it holds whole lines only. What `search` needs to know of it is written beside
    it at the end, also where the run is interrupted or the text cannot be read on; only a kill leaves the lines alone.
    Where no row is known, there is no file.

    Args:
        out: .jsonl.
        settings: with sections; a precision that needs no ranges of the whole run.
        encoding: of stdin; None is UTF-8.
        on_row: called with the rows and tokens so far.

    Returns:
        The number of rows.

    Raises:
        CorpusError: the output cannot be written as asked, or stdin is closed or not in that encoding.
    """
    check_free(out, mode)
    if out.suffix.lower() != ".jsonl":
        raise CorpusError(f"rows can be read while they are written in .jsonl only, not in {out.name!r}")
    if settings.precision in ("int8", "uint8"):
        raise CorpusError(
            f"{settings.precision} needs the ranges of all vectors, which are not known before the end; use float32, "
            "binary or ubinary"
        )
    if Parts.exist(parts_path(out)):
        raise CorpusError(f"{parts_path(out)} holds an unfinished run; continue that with --resume, or remove it")
    if sys.stdin is None:
        raise CorpusError("stdin is closed; pipe something into it, or name a file")
    text = Passage(
        Document(0, 0, STDIN, STDIN, False, _arriving(sys.stdin.buffer, encoding), lambda: None),
        frozenset(),
        in_sections=True,
        with_text=settings.with_text,
    )
    results = embedder.encode_stream(
        [text.text],
        prompt=settings.document_prompt(embedder),
        sections=settings.cut,
        truncate_dim=settings.truncate_dim,
        normalize_embeddings=settings.normalize,
        max_length=settings.max_length,
        **settings.schedule,
    )
    for path in companions(out):
        if path.is_file():
            path.unlink()  # of an output that stood here before
    rows = tokens = documents = 0
    with errors_named(out), open(out, "wb") as stream:
        try:
            for result in results:
                row = {
                    "key": f"{STDIN}#{result.section}",
                    "id": STDIN,
                    "path": STDIN,
                    "row": None,
                    "section": result.section,
                    "char_start": result.char_start,
                    "char_end": result.char_end,
                    "n_tokens": result.n_tokens,
                }
                passage = text.cut(result.char_start, result.char_end)
                if settings.with_text:
                    row["text"] = passage
                vector = to_precision(result.vector[None], settings.precision)[0]
                stream.write(json_line({**row, "vector": numbers(vector)}))
                stream.flush()
                rows, tokens, documents = rows + 1, tokens + result.n_tokens, documents + result.last
                on_row(rows, tokens)
        finally:
            if rows:
                files = (InputFile(STDIN, STDIN, TEXT, False, encoding=encoding),)
                metadata = describe_output(
                    settings,
                    embedder,
                    Manifest(settings.identity(embedder), files),
                    rows=rows,
                    documents=documents,
                    tokens=tokens,
                    failed=1 - documents,
                )
                write_durably(metadata_path(out), lambda beside: beside.write(metadata.dumps().encode()))
            else:
                out.unlink()
    return rows


def _arriving(stream: BinaryIO, encoding: str | None) -> Iterator[str]:
    """The text of a stream, as much at a time as is there."""
    name = "utf-8-sig" if encoding in (None, "utf-8") else encoding
    assert name is not None
    decoder = codecs.getincrementaldecoder(name)()
    offset = 0
    data = b"\0"
    while data:
        data = stream.read1(PIECE)  # type: ignore[attr-defined]
        try:
            piece = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"stdin is not {encoding or 'UTF-8'} ({error.reason}) between bytes {offset} and {offset + len(data)}; "
                "--encoding says otherwise"
            ) from error
        offset += len(data)
        if piece:
            yield piece
