"""Text to vectors: the one obvious path, text → tokens → packed steps → model → pooling → vector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch

from thalweg import kernels
from thalweg.checkpoints import Checkpoint
from thalweg.checks import one_of, text, whole_number
from thalweg.embedder.cancelling import check_stop
from thalweg.embedder.documents import TokenizedText, tokenized
from thalweg.embedder.engines import Engines
from thalweg.embedder.given import given_documents, given_texts
from thalweg.embedder.in_order import ReorderBuffer
from thalweg.embedder.isolated import Splitter, encode_isolated
from thalweg.embedder.loaded import LoadedModel, Side
from thalweg.embedder.options import DocumentOptions, EncodeOptions, StreamOptions
from thalweg.embedder.prefixes import Prefixes, TextPrefixes
from thalweg.embedder.progress_bar import progress_bar
from thalweg.embedder.results import Embedding
from thalweg.embedder.resumable import Checkpoints, ResumableTexts
from thalweg.embedder.sections import (
    TOKENS,
    Mode,
    Sections,
    Unit,
    check_of_growing_text,
    chosen_sections,
    running_totals,
    whole_text,
)
from thalweg.embedder.sessions.memory import SessionMemory
from thalweg.embedder.sessions.session import Session, Settings
from thalweg.embedder.sessions.sessions import Sessions
from thalweg.engine.engine import Engine
from thalweg.engine.prefixes import PrefixStates
from thalweg.engine.results import Failure, Pooled, Progress
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Ids, TokenSource
from thalweg.errors import InvalidInputError
from thalweg.pooling import Pooling
from thalweg.pooling.vectors import PRECISIONS, FloatArray, Precision, finish, to_precision
from thalweg.tokenization.backend import SpecialTokens
from thalweg.tokenization.tokenizer import TextSource, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("thalweg")


class Embedder(LoadedModel):
    """A model with its tokenizer and its way of making vectors. Made by `thalweg.load`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        head: str | None = None,
        *,
        special_tokens: SpecialTokens | None = None,
        max_uncut_chars: int | None = None,
    ) -> None:
        super().__init__(checkpoint, name, head, special_tokens=special_tokens, max_uncut_chars=max_uncut_chars)
        self._engines = Engines()
        self._prefixes = Prefixes()
        self._session_memory = SessionMemory()

    # -- texts that grow ---------------------------------------------------------------------------------------------

    def session(
        self,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        special_tokens: SpecialTokens | None = None,
        max_uncut_chars: int | None = None,
        sections: Sections | None = None,
    ) -> Session:
        """A text that grows: append to it any number of times, and ask for its vector at any time.

        Args:
            sections: for the vectors of its sections as well (`Session.sections`), by tokens, paragraph, sentence or
                heading; in mode "prefix", or "mean" where the model has mean pooling; without look_ahead.

        The other arguments are those of `encode`.

        Raises:
            InvalidInputError: as `encode` does, or sections that a growing text cannot have.
        """
        before = self.checked_prompt(prompt, prompt_name)
        return self._sessions.begin(
            before,
            self.session_settings(normalize_embeddings, truncate_dim, special_tokens, max_uncut_chars, sections),
        )

    def restore(
        self, path: str | Path, *, other_numeric_path: bool = False, max_uncut_chars: int | None = None
    ) -> Session:
        """The session that `Session.save` wrote.

        Args:
            path: the file. It stays as it is.
            max_uncut_chars: as in `session`; it is not saved.
            other_numeric_path: take a state that was computed with other kernels or on another kind of device too:
                vectors then differ from those of `encode` here as much as the two do.

        Raises:
            InvalidInputError: the file is no session, damaged or changed, or belongs to another model, dtype,
                quantisation or numeric path.
            OSError: it cannot be read.
        """

        return self._sessions.restore(
            Path(path),
            lambda saved: self.saved_session_settings(saved, max_uncut_chars),
            same_numeric_path=not other_numeric_path,
        )

    def append_many(
        self, pairs: Iterable[tuple[Session, str | bytes]], *, on_error: Literal["raise", "return"] = "raise"
    ) -> dict[Session, Exception]:
        """Append to many sessions at once: their new tokens share packed steps.

        Args:
            pairs: sessions of this model, and what comes next in each. One named twice gets its texts in order.
            on_error: what to do where a session fails, which is then as it was, while all others read on: "raise" the
                first error in the end, or "return" them.

        Returns:
            The sessions that failed, and why; empty if none did.

        Raises:
            InvalidInputError: no such pairs, in which case nothing has been done; and what `Session.append` raises.
        """
        one_of("on_error", on_error, ("raise", "return"))
        errors = self._sessions.append_many(pairs)
        if errors and on_error == "raise":
            raise next(iter(errors.values()))
        return errors

    def session_vectors(self, sessions: Iterable[Session]) -> FloatArray:
        """(n, d) float32: the vectors of sessions as if each ended here, computed in shared steps."""
        return self._sessions.vectors(sessions)

    def limit_sessions(self, max_bytes: int | None, folder: str | Path | None = None) -> None:
        """Keep the states of sessions in memory within `max_bytes`; those used longest ago wait on disk.

        A session that is asked for comes back by itself. A call works on as many sessions at a time as fit, and at
        least on one; calls at the same time have theirs each.

        Args:
            max_bytes: of states, `plan_memory().state` each; None keeps all in memory.
            folder: in which idle sessions, their text's last characters among them, have a folder that only this user
                can read; None is that of the system for temporary files. Files go with their sessions.

        Raises:
            InvalidInputError: a number that is none, or a folder that does not exist.
            OSError: a session cannot be written. It stays in memory, and so it is with calls that need room: they raise
                this before they have done anything.
        """
        self._session_memory.limit(max_bytes, folder)

    def prefix(self, prefix: str, *, cache_salt: str | None = None) -> int:
        """Run a text that others begin with, and keep its state for `encode` and `encode_stream` of those.

        A prompt is kept by itself, and so is what documents have in common with `share_prefixes`. States are those of
        exact tokens, within the bytes of `limit_prefixes`, where those used longest ago have to go.

        Args:
            prefix: the text.
            cache_salt: keep it for calls with the same `cache_salt` only.

        Returns:
            How many tokens every text that begins with it is spared; 0 where that is not worth it.

        Raises:
            InvalidInputError: it is no str.
        """
        return self._text_prefixes(cache_salt).keep(self.tokenizer, text("prefix", prefix))

    def limit_prefixes(self, max_bytes: int) -> None:
        """Forget all prefixes, and keep states of new ones within so many bytes (268,435,456 at first; 0 keeps none).

        Raises:
            InvalidInputError: a number that is none.
        """
        self._prefixes = Prefixes(max_bytes)

    @property
    def prefix_states(self) -> PrefixStates:
        """The states of prefixes: how many, their bytes, hits and misses."""
        return self._prefixes.states

    def _text_prefixes(self, cache_salt: str | None, *, share: bool = False) -> TextPrefixes:
        if cache_salt is not None:
            text("cache_salt", cache_salt)
        backends = (backend.name for backend in kernels.enabled())
        return TextPrefixes(self._prefixes, self, (cache_salt, str(self.device), *backends), share=share)

    def _prefixes_for(
        self, tokenizer: Tokenizer, prompt: str, share: bool, cache_salt: str | None
    ) -> TextPrefixes | None:
        """What finds the prefix of each text: the prompt's, those kept by hand, or what documents share."""
        prefixes = self._text_prefixes(cache_salt, share=share)
        if prompt:
            prefixes.keep(tokenizer, prompt)
        return prefixes if share or len(self._prefixes.states) else None

    @property
    def _sessions(self) -> Sessions:
        return Sessions(self, self._session_memory)

    def session_settings(
        self,
        normalize: bool | None,
        truncate_dim: int | None,
        special_tokens: SpecialTokens | None,
        max_uncut_chars: int | None,
        sections: Sections | None,
    ) -> Settings:
        """What holds for a session from its beginning on; the arguments and errors are those of `session`."""
        if truncate_dim is not None:
            whole_number("truncate_dim", truncate_dim, 1, self.dimension)
        if sections is not None:
            check_of_growing_text(sections)
            spec = sections.in_tokens().with_mode(self.pooling)
            if self.probe_id is None and spec.are_probed(self.pooling, appends_eos=self.appends_eos):
                raise InvalidInputError(
                    f"sections in mode {spec.mode!r} need an EOS to end with, and {self.name} has none; use "
                    "mode='mean' with a model that has mean pooling"
                )
        return Settings(
            self.embedding_config.normalize if normalize is None else normalize,
            truncate_dim,
            self.tokenizer.with_settings(special_tokens, max_uncut_chars),
            self.probe_id,
            sections,
        )

    def saved_session_settings(self, saved: Mapping[str, Any], max_uncut_chars: int | None = None) -> Settings:
        """The settings of a session of what its file says of them, which may be anything.

        Raises:
            Exception: of whatever kind: they are none.
        """
        normalize = saved["normalize"]
        if not isinstance(normalize, bool):
            raise InvalidInputError(f"normalize must be true or false, got {normalize!r:.80}")
        special_tokens: Any = text("special_tokens", saved["special_tokens"])
        sections = Sections(**saved["sections"]) if "sections" in saved else None
        return self.session_settings(normalize, saved["truncate_dim"], special_tokens, max_uncut_chars, sections)

    def run_sources(self, sources: Sequence[TokenSource]) -> Generator[Pooled | Failure, None, None]:
        """Documents through the engine that all calls share, as they finish."""
        with self._engines.use(self.schedule(), self.pooling, self._new_engine) as engine:
            yield from engine.run(sources, on_step=lambda done: check_stop())

    # -- many texts at once ------------------------------------------------------------------------------------------

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        show_progress_bar: bool = False,
        precision: Precision = "float32",
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        vertical_chunk_size: int | None = None,
        max_tokens_per_step: int | None = None,
        max_in_flight: int | None = None,
        batch_size: int | None = None,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        special_tokens: SpecialTokens | None = None,
        max_uncut_chars: int | None = None,
        share_prefixes: bool = False,
        cache_salt: str | None = None,
    ) -> Any:
        """Vectors of texts of any length.

        Args:
            texts: one text, or any iterable of them: a list, a Series, an array, a column, a generator.
            prompt: put before every text; prompt_name: the model's prompt of that name instead.
            show_progress_bar: on stderr, with tokens per second.
            precision: "float32", "int8", "uint8", "binary", "ubinary" (see `thalweg.pooling.vectors.to_precision`).
            normalize_embeddings: to length 1; None does what the model says.
            truncate_dim: keep the first so many dimensions (before normalisation).
            max_length: cut texts to so many tokens, BOS and EOS included; off by default, and a warning says how many
                were cut.
            vertical_chunk_size, max_tokens_per_step, max_in_flight: the bounds of the run (`Schedule`); they change
                speed and memory, not the vectors.
            batch_size: taken as in sentence-transformers and without effect: texts are packed by tokens
                (`max_tokens_per_step`), however many there are.
            convert_to_tensor: return a torch.Tensor on the model's device instead of an array.
            device: move the model there first.
            special_tokens, max_uncut_chars: as in `thalweg.load`; None is what was given there.
            share_prefixes: run what texts have in common at their beginning once, from 64 tokens on: headers, legal
                boilerplate, the past of a conversation. A prompt is run once in any case.
            cache_salt: use and keep the states of prefixes only for calls with the same one. With a salt for each
                tenant, nobody can tell from the time that a call takes what another one's texts begin with.

        Returns:
            An array (n, d) in input order, or (d,) for a single text.

        Raises:
            InvalidInputError: a text that is no str, an unknown prompt name, precision, bound or device.
            TokenizationError: a text that cannot be tokenised exactly in bounded memory.
            NumericalError: the model's numbers became inf or NaN.
        """
        if batch_size is not None:
            log.info("batch_size=%s has no effect: max_tokens_per_step bounds a step, of any texts", batch_size)
        if device is not None:
            self.to(device)
        single = isinstance(texts, str)
        batch = given_texts(texts)
        most = self.dimension
        width = most if truncate_dim is None else whole_number("truncate_dim", truncate_dim, 1, most)
        one_of("precision", precision, PRECISIONS)
        vectors = np.zeros((len(batch), width), dtype=np.float32)
        cut = 0
        with progress_bar(len(batch), show_progress_bar) as report:
            for embedding in self.encode_stream(
                batch,
                prompt=prompt,
                prompt_name=prompt_name,
                ordered=False,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                max_length=max_length,
                vertical_chunk_size=vertical_chunk_size,
                max_tokens_per_step=max_tokens_per_step,
                max_in_flight=max_in_flight,
                progress=report,
                special_tokens=special_tokens,
                max_uncut_chars=max_uncut_chars,
                share_prefixes=share_prefixes,
                cache_salt=cache_salt,
            ):
                vectors[embedding.index] = embedding.vector
                cut += embedding.truncated
        if cut:
            log.warning("max_length=%s cut %d of %d texts", max_length, cut, len(batch))
        result = to_precision(vectors, precision)[0 if single else slice(None)]
        return torch.as_tensor(result, device=self.device) if convert_to_tensor else result

    def encode_query(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> Any:
        """`encode` with the model's prompt "query", if it has one."""
        return self.encode(texts, **self._with_prompt("query", options))

    def encode_document(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> Any:
        """`encode` with the model's prompt "document" (or "passage", "corpus"), if it has one."""
        return self.encode(texts, **self._with_prompt("document", options))

    def _with_prompt(self, side: Side, options: EncodeOptions) -> EncodeOptions:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            return {**options, "prompt_name": self.prompt_name_of(side)}
        return options

    # -- token ids ---------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[npt.NDArray[np.int32]]:
        """The ids (n,) int32 of each text after `prompt`, as `encode` takes them: BOS and EOS included, never empty.

        Raises as `encode` does.
        """
        empty = np.array([] if self.probe_id is None else [self.probe_id], dtype=np.int32)
        return [ids if len(ids) else empty for ids in self.tokenizer.encode_batch(texts, prompt)]

    def encode_ids(
        self,
        ids: Iterable[npt.NDArray[np.integer]],
        *,
        vertical_chunk_size: int | None = None,
        max_tokens_per_step: int | None = None,
        max_in_flight: int | None = None,
    ) -> FloatArray:
        """(n, d) float32: the pooled vectors of texts that are ids already (see `tokenize`), as they leave the model.

        They are neither cut nor normalised, whatever the model says. Raises InvalidInputError for a text without ids.
        """
        schedule = self.schedule(
            vertical_chunk_size=vertical_chunk_size,
            max_tokens_per_step=max_tokens_per_step,
            max_in_flight=max_in_flight,
        )
        rows = list(ids)
        vectors = np.zeros((len(rows), self.dimension), dtype=np.float32)
        with self._engines.use(schedule, self.pooling, self._new_engine) as engine:
            for result in engine.run([Ids(row) for row in rows]):
                if isinstance(result, Failure):
                    raise result.error
                vectors[result.key] = self.after_pooling(result.vector)
        return vectors

    def _new_engine(self, schedule: Schedule, pooling: Pooling) -> Engine:
        appends_eos = self.embedding_config.append_eos
        return Engine(self.model, pooling, schedule, probe_id=self.probe_id, appends_eos=appends_eos)

    # -- documents as they come --------------------------------------------------------------------------------------

    @overload
    def encode_stream(
        self,
        documents: Iterable[TextSource],
        *,
        on_error: Literal["raise"] = ...,
        **options: Unpack[DocumentOptions],
    ) -> Iterator[Embedding]: ...

    @overload
    def encode_stream(
        self,
        documents: Iterable[TextSource],
        *,
        on_error: Literal["yield"],
        **options: Unpack[DocumentOptions],
    ) -> Iterator[Embedding | Failure]: ...

    def encode_stream(
        self,
        documents: Iterable[TextSource],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        section_size: int | None = None,
        sections: Sections | None = None,
        ordered: bool = True,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        vertical_chunk_size: int | None = None,
        max_tokens_per_step: int | None = None,
        max_in_flight: int | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        progress: Callable[[Progress], None] | None = None,
        special_tokens: SpecialTokens | None = None,
        max_uncut_chars: int | None = None,
        share_prefixes: bool = False,
        cache_salt: str | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Iterator[Embedding | Failure]:
        """Vectors of documents that come from an iterator, as they are ready; neither side is held in memory.

        Args:
            documents: each a str, or its text in pieces: an iterable of str or of UTF-8 bytes (cut anywhere) or an open
                file. Pieces are pulled when the model needs them.
            section_size: one vector for every so many tokens of a document, each with everything before it in view,
                instead of one for the whole: with mean pooling the mean over the section, with last-token pooling the
                vector of the document up to the section's end.
            sections: what else a section may be and stand for; `section_size=n` is short for `Sections(every=n)`.
            ordered: in the order of the input (a document that finishes early waits, within bounds); otherwise as they
                finish. Sections of one document are always in order, isolated ones are all.
            on_error: what to do with a document that cannot be read or tokenised: "raise", or "yield" a `Failure` and
                go on with the others.
            progress: called after every step.
            checkpoints: where long documents leave what a later call goes on from. Not with isolated sections, with
                look_ahead, or with boundaries that are given.

        The other arguments are those of `encode`.

        Raises:
            InvalidInputError: what is no iterable of documents, or an argument that cannot be. A document that is none
                is handled as `on_error` says.
        """
        documents = given_documents(documents)
        one_of("on_error", on_error, ("raise", "yield"))
        before = self.checked_prompt(prompt, prompt_name)
        if truncate_dim is not None:
            whole_number("truncate_dim", truncate_dim, 1, self.dimension)
        if max_length is not None:
            whole_number("max_length", max_length, 1)
        sections = chosen_sections(section_size, sections)
        schedule = self.schedule(
            vertical_chunk_size=vertical_chunk_size,
            max_tokens_per_step=max_tokens_per_step,
            max_in_flight=max_in_flight,
        )
        normalize = self.embedding_config.normalize if normalize_embeddings is None else normalize_embeddings
        tokenizer = self.tokenizer.with_settings(special_tokens, max_uncut_chars)
        prefixes = self._prefixes_for(tokenizer, before, share_prefixes, cache_salt)
        open_resumable = None
        if checkpoints is not None and (sections is None or sections.can_go_on):
            open_resumable = ResumableTexts(
                tokenizer, before, max_length, self.probe_id, prefixes, checkpoints, sections
            ).open

        def run(
            documents: Iterable[TextSource],
            sections: Sections | None,
            ordered: bool,
            on_error: Literal["raise", "yield"],
            progress: Callable[[Progress], None] | None,
        ) -> Iterator[Embedding | Failure]:
            texts = tokenized(
                documents, tokenizer, before, max_length, sections, self.probe_id, prefixes, open_resumable
            )
            blocking = share_prefixes or not isinstance(documents, Sequence)
            return self._run(schedule, texts, blocking, sections, ordered, normalize, truncate_dim, on_error, progress)

        if sections is None or sections.mode != "isolated":
            return run(documents, sections, ordered, on_error, progress)
        splitter = Splitter(documents, sections, tokenizer.window)
        return encode_isolated(
            lambda texts, on_step: run(texts, None, True, "yield", on_step), splitter, on_error, progress
        )

    def _run(
        self,
        schedule: Schedule,
        documents: Iterator[TokenizedText],
        blocking: bool,
        sections: Sections | None,
        ordered: bool,
        normalize: bool,
        truncate_dim: int | None,
        on_error: Literal["raise", "yield"],
        progress: Callable[[Progress], None] | None,
    ) -> Iterator[Embedding | Failure]:
        texts: dict[int, TokenizedText] = {}

        def on_step(done: Progress) -> None:
            check_stop()
            if progress is not None:
                progress(done)

        def sources() -> Iterator[TokenSource]:
            for index, text in enumerate(documents):
                texts[index] = text
                yield text

        queue = ReorderBuffer() if ordered else None
        in_tokens, pooling = self.in_sections(sections)
        with self._engines.use(schedule, pooling, self._new_engine) as engine:
            results = engine.run(
                sources(),
                section_size=in_tokens,
                may_start=None if queue is None else queue.has_room,
                is_early=None if queue is None else queue.is_early,
                on_step=on_step,
                blocking=blocking,
            )
            for result in results if queue is None else queue.release(results):
                text = texts[result.key]
                if isinstance(result, Failure):
                    del texts[result.key]
                    if on_error == "raise":
                        raise result.error
                    yield result
                    continue
                start, end = text.characters(result)
                pooled = self.after_pooling(result.vector)
                vector = finish(pooled[None], normalize=normalize, truncate_dim=truncate_dim)[0]
                if result.last:
                    del texts[result.key]
                yield Embedding(
                    result.key,
                    result.section,
                    result.stop - result.start,
                    start,
                    end,
                    vector,
                    result.last,
                    text.truncated,
                )

    # -- one text as it arrives --------------------------------------------------------------------------------------

    def encode_sections(
        self,
        text: TextSource,
        *,
        by: Unit | Callable[[str], Iterable[int]] | Iterable[int] = "tokens",
        every: int | None = None,
        mode: Mode | None = None,
        look_ahead: int = 0,
        **options: Unpack[StreamOptions],
    ) -> Iterator[Embedding]:
        """The vectors of the sections of one text of any length, in one pass and in order, while the text arrives.

        The characters `char_start` to `char_end` of the vectors tile the text; nothing of it is held whole. See
        `thalweg.Sections` for what belongs to a section.

        Args:
            text: a str, bytes, pieces of one of them (cut anywhere) or an open file.
            by, every, mode, look_ahead: see `thalweg.Sections`. Characters may come from an iterator, which is read one
                position ahead of the text. Only a str or bytes can be cut by a function.
            options: those of `encode_stream`; `max_length` cuts the text, in mode "isolated" every section.

        Raises:
            InvalidInputError: an argument that cannot be, or boundaries that do not ascend inside the text.
            TokenizationError, OSError: the text cannot be read or tokenised; the sections before have been given.
            NumericalError: the model's numbers became inf or NaN.
        """
        sections = Sections(by, every, mode, look_ahead)
        if callable(by):
            whole_text(text)
        return self.encode_stream([text], sections=sections, **options)

    def stream(
        self, text: TextSource, every: int = TOKENS, **options: Unpack[StreamOptions]
    ) -> Iterator[tuple[int, FloatArray]]:
        """Follow a text while it arrives: after every so many tokens, and at its end, how many there have been and the
        vector (d,) of the text so far, as if it ended there.

        The options and errors are those of `encode_sections`.
        """
        found = self.encode_sections(text, every=every, mode="prefix", **options)
        return running_totals(found)
