"""One run: documents in, vectors into parts, parts to the output."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from thalweg.corpus.assemble import assemble
from thalweg.corpus.documents import Document, LeftOut, ReadFailure, read_documents
from thalweg.corpus.index import Done
from thalweg.corpus.manifest import Manifest
from thalweg.corpus.parts import Parts
from thalweg.corpus.passages import Passage
from thalweg.corpus.report import FailureLog, ReportedFailure, Status, Summary
from thalweg.corpus.results import read_metadata
from thalweg.corpus.rows import Row, part_schema
from thalweg.corpus.settings import Mode, Settings, check_free
from thalweg.corpus.states import States
from thalweg.corpus.writers import FAILURES, parts_path
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.results import Embedding
from thalweg.embedder.resumable import ChangedTextError
from thalweg.engine.results import Failure, Progress
from thalweg.errors import CorpusError
from thalweg.inputs.discover import Unreadable
from thalweg.inputs.files import InputFile
from thalweg.storage.durable import cure, in_words

_NOTHING: Mapping[str, int] = MappingProxyType({})


def _ignore(status: Status) -> None:
    """Nobody wants to know."""


def embed_files(
    embedder: Embedder,
    files: Sequence[InputFile],
    out: Path,
    settings: Settings,
    *,
    unreadable: Sequence[Unreadable] = (),
    left_out: Mapping[str, int] = _NOTHING,
    mode: Mode = "new",
    on_status: Callable[[Status], None] = _ignore,
) -> Summary:
    """Embed files of any number and length into one output, in bounded memory.

    Finished rows are saved in a folder beside `out` as the run goes on. After a crash, `mode="resume"` with the same
    settings and inputs continues: no row is lost or repeated, and vectors agree with those of an undisturbed run
    (1e-5; documents are packed anew). A document that was under way is read again from its start, but run from the last
    state that it has saved (`Settings.state_every`).

    Args:
        files, unreadable, left_out: from `discover`.
        out: .parquet, .jsonl or .npy; appears, or is replaced, when all is done.
        on_status: called after every step.

    Raises:
        CorpusError: the output cannot be written as asked, a resumed run differs from the earlier one, or no document
            could be embedded.
    """
    check_free(out, mode)
    began = time.monotonic()
    manifest = Manifest(settings.identity(embedder), tuple(files))
    if mode == "resume":
        manifest.check_repeatable()
        if not Parts.exist(parts_path(out)) and out.exists():
            summary = _completed(out, manifest)
            Parts.sweep(parts_path(out))
            return summary
    schema = part_schema(settings.dimension(embedder), with_text=settings.with_text)
    with closing(Parts(parts_path(out), schema, settings.save_every)) as parts:
        goes_on = mode == "resume" and Parts.exist(parts.folder)
        damaged = parts.resume(manifest) if goes_on else []
        try:
            if not goes_on:
                parts.begin(manifest)
            run = _Run(embedder, settings, parts, manifest, on_status)
            run.status.remade = tuple(damaged)
            run.status.files.left_out.update(left_out)
            run.status.files.seen += sum(left_out.values())
            shown = run.embed(unreadable)
            run.status.writing = True
            on_status(run.status)
            return assemble(out, parts, settings, embedder, manifest, run.status, shown, began)
        except BaseException as error:
            parts.remove_if_empty()  # nothing to resume
            # One of the output, as what is wrong with an input is a failure of its own.
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise _unwritable(error, parts, repeatable=manifest.repeatable) from error
            raise


def _unwritable(error: OSError, parts: Parts, *, repeatable: bool) -> CorpusError:
    what = f"{parts.n_saved:,} vectors are" if parts.n_saved else "the states of long documents are"
    if not parts.n_saved and not parts.has_states:
        saved = f"nothing was saved yet: {cure(error)}, then start again"
    elif repeatable:
        saved = f"{what} saved in {parts.folder}: {cure(error)}, then go on with --resume"
    else:
        saved = f"{parts.n_saved:,} vectors are in {parts.folder}, but stdin cannot be read again to go on"
    return CorpusError(f"{in_words(error)}; {saved}")


def _completed(out: Path, manifest: Manifest) -> Summary:
    """For a run that was done before: what its output says, if it is that run's."""
    metadata = read_metadata(out)
    manifest.check_settings(metadata.run, str(out))
    if metadata.run["inputs"] != manifest.summary()["inputs"]:
        raise CorpusError(f"{out} is complete, but was made from other files, or they have changed; use --overwrite")
    return Summary(metadata.documents, metadata.rows, metadata.tokens, metadata.failed, nothing_to_do=True)


class _Run:
    """The part of a run in which vectors are made."""

    def __init__(
        self,
        embedder: Embedder,
        settings: Settings,
        parts: Parts,
        manifest: Manifest,
        on_status: Callable[[Status], None],
    ) -> None:
        files = manifest.files
        self._embedder = embedder
        self._settings = settings
        self._parts = parts
        self._files = files
        self._on_status = on_status
        self._done = Done(parts.index())
        self._passages: dict[int, Passage] = {}
        self.status = Status(
            n_documents=None if any(file.is_table for file in files) else len(files),
            n_bytes=sum(file.size for file in files) or None,
            documents=self._done.n_documents,
            saved=self._done.n_documents,
        )
        self.status.files.seen = len(files)
        self._states = None
        if settings.state_every and (settings.cut is None or settings.cut.can_go_on) and manifest.repeatable:
            self._states = States(
                parts.folder,
                embedder,
                manifest.digest,
                settings.state_every,
                self._done,
                lambda number: self._passages[number],
                parts.save,
                self.status.note,
            )

    def embed(self, unreadable: Iterable[Unreadable]) -> tuple[ReportedFailure, ...]:
        """Bring every document into the parts; the first failures come back."""
        log = FailureLog(self._parts.folder / FAILURES, self.status, strict=self._settings.strict)
        try:
            with log:
                for folder in unreadable:
                    log.add(ReadFailure(folder.path, folder.error, concerns="folder"))
                with closing(self._results(log)) as results:
                    for result in results:
                        self._store(result, log)
        except BaseException:
            # Whatever it is, also Ctrl-C: what is finished must not be lost.
            self._parts.save()
            raise
        self._parts.save()
        return tuple(log.shown)

    def _results(self, log: FailureLog) -> Generator[Embedding | Failure, None, None]:
        settings = self._settings
        yield from self._embedder.encode_stream(
            self._texts(log),
            prompt=settings.document_prompt(self._embedder),
            sections=settings.cut,
            ordered=False,  # the parts take rows in any order
            truncate_dim=settings.truncate_dim,
            normalize_embeddings=settings.normalize,
            max_length=settings.max_length,
            share_prefixes=settings.share_prefixes,
            on_error="yield",
            progress=self._on_step,
            checkpoints=self._states,
            **settings.schedule,
        )

    def _texts(self, log: FailureLog) -> Iterator[str | Iterator[str]]:
        """What the embedder pulls. Every document is remembered by its number until nothing more of it comes."""
        number = 0
        status, settings = self.status, self._settings
        for item in read_documents(self._files, settings.columns, self._done, status.meter, status.note):
            if isinstance(item, ReadFailure):
                log.add(item)
                continue
            if isinstance(item, LeftOut):
                status.files.left_out[item.kind] += 1
                continue
            passage = Passage(
                item,
                self._done.sections(item.file, item.row),
                in_sections=settings.cut is not None,
                with_text=settings.with_text,
            )
            self._passages[number] = passage
            number += 1
            yield passage.text

    def _store(self, result: Embedding | Failure, log: FailureLog) -> None:
        passage = self._passages[result.index]
        document = passage.document
        if isinstance(result, Failure):
            self._end(result.index)
            if isinstance(result.error, ChangedTextError):
                raise CorpusError(f"{document.id}: {result.error}; start over with --overwrite")
            state = self._state_of(document)
            if state is not None:
                state.unlink(missing_ok=True)  # it is tried again from its start
            log.add(ReadFailure(document.id, result.error, concerns="row" if document.is_row else "file"))
            return
        text = passage.cut(result.char_start, result.char_end)
        if result.section not in passage.saved:
            self._parts.append(_row(document, result, text), self._state_of(document) if result.last else None)
        if self._states is not None and not result.last:
            self._states.has_row(result.index, result.section)
        if result.last:
            self._end(result.index)
            self.status.documents += 1

    def _state_of(self, document: Document) -> Path | None:
        return None if self._states is None else self._states.of(document)

    def _end(self, number: int) -> None:
        if self._states is not None:
            self._states.forget(number)
        self._passages.pop(number).document.close()

    def _on_step(self, progress: Progress) -> None:
        self.status.tokens = progress.tokens
        self._parts.save_if_due()
        self._on_status(self.status)


def _row(document: Document, result: Embedding, text: str) -> Row:
    return Row(
        key_file=document.file,
        key_row=document.row,
        key_last=result.last,
        key_cut=result.last and result.truncated,
        id=document.id,
        path=document.path,
        row=document.row if document.is_row else None,
        section=result.section,
        char_start=result.char_start,
        char_end=result.char_end,
        n_tokens=result.n_tokens,
        text=text,
        vector=result.vector,
    )
