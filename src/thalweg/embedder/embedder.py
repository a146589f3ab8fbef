"""Text to vectors: the one obvious path, text → tokens → packed steps → model → pooling → vector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch

from thalweg import kernels
from thalweg.checkpoints import Checkpoint, EmbeddingConfig, TokenIds
from thalweg.checkpoints.fingerprint import fingerprint
from thalweg.checks import one_of, text, whole_number
from thalweg.embedder.cancelling import check_stop
from thalweg.embedder.devices import check_device
from thalweg.embedder.documents import TokenizedText, tokenized
from thalweg.embedder.dtypes import Dtype, dtype_of_products
from thalweg.embedder.engines import Engines
from thalweg.embedder.export import ExportFormat, export
from thalweg.embedder.given import given_documents, given_texts
from thalweg.embedder.in_order import ReorderBuffer
from thalweg.embedder.isolated import Splitter, encode_isolated
from thalweg.embedder.options import EncodeOptions, StreamOptions
from thalweg.embedder.prefixes import Prefixes, TextPrefixes
from thalweg.embedder.progress_bar import progress_bar
from thalweg.embedder.renamed import renamed
from thalweg.embedder.results import Embedding
from thalweg.embedder.resumable import Checkpoints, ResumableTexts
from thalweg.embedder.sections import TOKENS, Mode, Sections, Unit, chosen_sections, running_totals, whole_text
from thalweg.embedder.sessions.memory import SessionMemory
from thalweg.embedder.sessions.session import Session, Settings
from thalweg.embedder.sessions.sessions import Sessions
from thalweg.engine.engine import Engine
from thalweg.engine.memory_plan import MemoryPlan, plan_memory
from thalweg.engine.prefixes import PrefixStates
from thalweg.engine.results import Failure, Pooled, Progress
from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Ids, TokenSource
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.quantized import Quantization, quantization_of
from thalweg.pooling import Mean, Pooling, make_pooling
from thalweg.pooling.vectors import PRECISIONS, FloatArray, Precision, finish, to_precision
from thalweg.system.cached import cached_property
from thalweg.tokenization.backend import MAX_UNCUT_CHARS, SpecialTokens
from thalweg.tokenization.tokenizer import TextSource, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("thalweg")

Side: TypeAlias = Literal["query", "document"]

PROMPT_NAMES: dict[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What authors of models call their prompts."""


class Embedder:
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
        self._checkpoint = checkpoint
        self.name = name
        self.family = checkpoint.family
        self.format = checkpoint.format
        self.config = checkpoint.config
        self.embedding_config = checkpoint.embedding
        self.folder, self.source = checkpoint.folder, checkpoint.source
        self.model: Any = checkpoint.model
        self._engines = Engines()
        self._prefixes = Prefixes()
        self._session_memory = SessionMemory()
        self.weights_dtype = checkpoint.weights_dtype
        self.head = self._checked_head(checkpoint.embedding.head if head is None else head)
        eos = checkpoint.eos_token_id if checkpoint.embedding.append_eos else None
        bos = checkpoint.bos_token_id if checkpoint.prepend_bos else None
        if checkpoint.prepend_bos and bos is None:
            raise CheckpointError(
                f"{checkpoint.folder}: every text must begin with BOS (force_bos_token_insert), but no file states its "
                "id; add bos_token_id to config.json"
            )
        self.tokenizer = Tokenizer.from_folder(
            checkpoint.folder,
            eos_token_id=eos,
            bos_token_id=bos,
            n_eos=self.embedding_config.n_eos,
            special_tokens=self.embedding_config.special_tokens if special_tokens is None else special_tokens,
            max_uncut_chars=MAX_UNCUT_CHARS if max_uncut_chars is None else max_uncut_chars,
        )
        self._probe_id = checkpoint.eos_token_id
        self.token_ids = TokenIds(checkpoint.eos_token_id, checkpoint.bos_token_id, checkpoint.pad_token_id)
        if self.tokenizer.vocab_size > checkpoint.config.vocab_size:
            raise CheckpointError(
                f"{checkpoint.folder}: the tokenizer has ids up to {self.tokenizer.vocab_size - 1}, but the model only "
                f"{checkpoint.config.vocab_size} embeddings: they do not belong together"
            )
        if self.notice:
            log.warning("%s", self.notice)

    def __repr__(self) -> str:
        config = self.embedding_config
        numbers = f"{self.quantization}, " if self.quantization else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Embedder({self.name!r}: {self.family}, {self.dimension} dimensions, {config.pooling} pooling, {numbers}"
            f"{dtype} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def to(self, device: str | torch.device) -> Embedder:
        """Move the model, and return it, as in sentence-transformers.

        Raises:
            InvalidInputError: the device cannot be used, or not for a quantised model.
        """
        place = check_device(device)
        if self.quantization is not None and place.type != "cpu":
            raise InvalidInputError(f"a model in {self.quantization} runs on the CPU only, not on {str(place)!r}")
        self.model.to(place)
        return self

    def get_embedding_dimension(self) -> int:
        """`dimension`, by sentence-transformers' name."""
        return self.dimension

    @property
    def dimension(self) -> int:
        """Width d of the vectors."""
        return self.pooling.width(int(self.model.d_model))

    @property
    def pooling(self) -> Pooling:
        """How hidden vectors become one."""
        config = self.embedding_config
        return make_pooling(config.pooling, n_eos=config.n_eos, lexicon=config.lexicon)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrix products."""
        return dtype_of_products(self.model)

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantised, if at all."""
        return quantization_of(self.model)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the embedding heads that the model has; `thalweg.load(head=…)` chooses one of them."""
        return tuple(getattr(self.model, "heads", ()))

    @property
    def special_tokens(self) -> SpecialTokens:
        """What the literal of a special token in a text is read as; see `thalweg.load`."""
        return self.tokenizer.special_tokens

    def _checked_head(self, head: str | None) -> str | None:
        if head is not None and (not isinstance(head, str) or head not in self.heads):
            known = ", ".join(map(repr, self.heads)) or "none"
            raise InvalidInputError(f"{self.name} has no embedding head {head!r}; its heads: {known}")
        return head

    @property
    def prompts(self) -> dict[str, str]:
        """The texts that may be put before a text, by name."""
        return self.embedding_config.prompts

    @property
    def default_prompt_name(self) -> str | None:
        return self.embedding_config.default_prompt_name

    @property
    def notice(self) -> str | None:
        """One line that a user of this model should know, or None."""
        if not self.embedding_config.untuned:
            return None
        return (
            f"{self.name} is a language model that was not tuned for embeddings: "
            f"using {self.embedding_config.pooling}-token pooling, an appended EOS and no prompt"
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell vectors of this model from those of others."""
        chosen = None if self.special_tokens == self.embedding_config.special_tokens else self.special_tokens
        return fingerprint(self.folder, self._checkpoint.source, self.head, chosen)

    def schedule(
        self,
        *,
        vertical_chunk_size: int | None = None,
        max_tokens_per_step: int | None = None,
        max_in_flight: int | None = None,
    ) -> Schedule:
        """The bounds of a run; None leaves the default."""
        given = {
            "vertical_chunk_size": vertical_chunk_size,
            "max_tokens_per_step": max_tokens_per_step,
            "max_in_flight": max_in_flight,
        }
        return replace(Schedule(), **{name: value for name, value in given.items() if value is not None})

    def plan_memory(
        self, *, section_size: int | None = None, sections: Sections | None = None, **schedule: int | None
    ) -> MemoryPlan:
        """The bytes that a run with these bounds (see `schedule`) and these sections (see `encode_stream`) will take,
        whatever the lengths of the texts."""
        _, pooling = self._in_sections(chosen_sections(section_size, sections))
        return plan_memory(self.model, self.schedule(**schedule), pooling)

    def _in_sections(self, sections: Sections | None) -> tuple[TokenSections | None, Pooling]:
        """What the engine is told of sections, and the pooling that they need."""
        if sections is None or sections.mode == "isolated":
            return None, self.pooling
        in_tokens, pooling = sections.in_tokens(), self.pooling
        if in_tokens.mode == "mean" and pooling.needs_eos:
            pooling = Mean(n_eos=self.embedding_config.n_eos)
        return in_tokens.with_mode(pooling), pooling

    def prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """The text put before every text: `prompt` itself, or the model's prompt of that name."""
        if prompt is not None:
            return text("prompt", prompt)
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if text("prompt_name", name) not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InvalidInputError(f"{self.name} has no prompt named {name!r}; its prompts: {known}")
        return self.prompts[name]

    def _checked_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """As `prompt`, for texts to be embedded."""
        before = self.prompt(prompt, prompt_name)
        if before and self.pooling.averages_prompt and not self.embedding_config.include_prompt:
            raise InvalidInputError(
                f"{self.name} leaves the prompt out of its mean (include_prompt=false), which is not supported; "
                "use it without a prompt"
            )
        return before

    @property
    def saved_config(self) -> EmbeddingConfig:
        """`embedding_config` with what was chosen when the model was loaded."""
        return replace(self.embedding_config, head=self.head, special_tokens=self.special_tokens)

    def save(
        self,
        folder: str | Path,
        *,
        format: ExportFormat = "sentence-transformers",
        dtype: Dtype = None,
        overwrite: bool = False,
        edit_card: Callable[[str], str] | None = None,
    ) -> None:
        """Write the model to a folder for thalweg, sentence-transformers and, if it knows the family, transformers.

        Args:
            folder: appears whole or not at all.
            format: "sentence-transformers" is opened with `SentenceTransformer(folder, trust_remote_code=True)` and
                run by thalweg, or for Mamba and xLSTM by the stock modules where thalweg is not installed. "stock" is
                always run by the stock modules and needs no `trust_remote_code`.
            dtype: of the weights in the file; None keeps the one they have here.
            overwrite: replace the folder if it holds a checkpoint; all that lies in it goes.
            edit_card: makes the model card that is written out of the one that export writes.

        Raises:
            InvalidInputError: the folder exists, the model cannot be written in that format, or its weights are
                quantised.
        """
        export(
            replace(self._checkpoint, embedding=self.saved_config),
            folder,
            name=self.name,
            dimension=self.dimension,
            format=format,
            dtype=dtype,
            overwrite=overwrite,
            edit_card=edit_card,
        )

    embedding = renamed("embedding", "embedding_config")
    layout = renamed("layout", "format")
    quantize = renamed("quantize", "quantization")

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
    ) -> Session:
        """A text that grows: append to it any number of times, and ask for its vector at any time.

        The arguments are those of `encode`.

        Raises:
            InvalidInputError: as `encode` does.
        """
        before = self._checked_prompt(prompt, prompt_name)
        return self._sessions.begin(
            before, self._session_settings(normalize_embeddings, truncate_dim, special_tokens, max_uncut_chars)
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

        def settings_of(saved: Mapping[str, Any]) -> Settings:
            normalize = saved["normalize"]
            if not isinstance(normalize, bool):
                raise InvalidInputError(f"normalize must be true or false, got {normalize!r:.80}")
            special_tokens: Any = text("special_tokens", saved["special_tokens"])
            return self._session_settings(normalize, saved["truncate_dim"], special_tokens, max_uncut_chars)

        return self._sessions.restore(Path(path), settings_of, same_numeric_path=not other_numeric_path)

    def append_many(self, pairs: Iterable[tuple[Session, str | bytes]]) -> None:
        """Append to many sessions at once: their new tokens share packed steps.

        Args:
            pairs: sessions of this model, and what comes next in each. One named twice gets its texts in order.

        Raises:
            what `Session.append` raises. Sessions that failed are as they were, all others have read on; the first
            error is raised.
        """
        self._sessions.append_many(pairs)

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

    def prefix(self, prefix: str) -> int:
        """Run a text that others begin with, and keep its state for `encode` and `encode_stream` of those.

        A prompt is kept by itself, and so is what documents have in common with `share_prefixes`. States are those of
        exact tokens, within the bytes of `limit_prefixes`, where those used longest ago have to go.

        Returns:
            How many tokens every text that begins with it is spared; 0 where that is not worth it.

        Raises:
            InvalidInputError: it is no str.
        """
        return self._text_prefixes().keep(self.tokenizer, text("prefix", prefix))

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

    def _text_prefixes(self, *, share: bool = False) -> TextPrefixes:
        backends = (backend.name for backend in kernels.enabled())
        return TextPrefixes(self._prefixes, self, (str(self.device), *backends), share=share)

    def _prefixes_for(self, tokenizer: Tokenizer, prompt: str, share: bool) -> TextPrefixes | None:
        """What finds the prefix of each text: the prompt's, those kept by hand, or what documents share."""
        prefixes = self._text_prefixes(share=share)
        if prompt:
            prefixes.keep(tokenizer, prompt)
        return prefixes if share or len(self._prefixes.states) else None

    @property
    def _sessions(self) -> Sessions:
        return Sessions(self, self._session_memory)

    def _session_settings(
        self,
        normalize: bool | None,
        truncate_dim: int | None,
        special_tokens: SpecialTokens | None,
        max_uncut_chars: int | None,
    ) -> Settings:
        if truncate_dim is not None:
            whole_number("truncate_dim", truncate_dim, 1, self.dimension)
        return Settings(
            self.embedding_config.normalize if normalize is None else normalize,
            truncate_dim,
            self.tokenizer.with_settings(special_tokens, max_uncut_chars),
            self._probe_id,
        )

    @property
    def state_identity(self) -> dict[str, str]:
        """What two models must have in common for the one to go on from a state of the other."""
        used = [title for title, use in kernels.report(self.device, self.dtype) if use == "used"]
        return {
            "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": str(self.quantization),
            "pooling": self.embedding_config.pooling,
            "numeric path": ", ".join([self.device.type, *(used or ["PyTorch"])]),
        }

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

    def prompt_name_of(self, side: Side) -> str | None:
        """The name of the model's prompt for queries or documents, as its author calls it; None if it has none."""
        return next((name for name in PROMPT_NAMES[side] if name in self.prompts), None)

    def _with_prompt(self, side: Side, options: EncodeOptions) -> EncodeOptions:
        if options.get("prompt") is None and options.get("prompt_name") is None:
            return {**options, "prompt_name": self.prompt_name_of(side)}
        return options

    def similarity(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """(n, m) float32: how alike each of a (n, d) is to each of b (m, d), by the model's own measure.

        Cosine or dot product; for euclidean and manhattan the negative distance, so that larger is always closer.

        Raises:
            InvalidInputError: no vectors of numbers, or vectors of different widths.
        """
        a, b = (_matrix(v) for v in (a, b))
        if a.shape[1] != b.shape[1]:
            raise InvalidInputError(
                f"vectors of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared; they must come from the same "
                "model with the same truncate_dim"
            )
        kind = self.embedding_config.similarity
        if kind == "cosine":
            a, b = finish(a, normalize=True), finish(b, normalize=True)
        if kind in ("cosine", "dot"):
            return np.asarray(a @ b.T)
        order = 2 if kind == "euclidean" else 1
        return np.stack([-np.linalg.norm(row - b, ord=order, axis=1) for row in a]).astype(np.float32)

    # -- token ids ---------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[npt.NDArray[np.int32]]:
        """The ids (n,) int32 of each text after `prompt`, as `encode` takes them: BOS and EOS included, never empty.

        Raises as `encode` does.
        """
        empty = np.array([] if self._probe_id is None else [self._probe_id], dtype=np.int32)
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
        return Engine(self.model, pooling, schedule, probe_id=self._probe_id, appends_eos=appends_eos)

    # -- documents as they come --------------------------------------------------------------------------------------

    @overload
    def encode_stream(
        self,
        documents: Iterable[TextSource],
        *,
        prompt: str | None = ...,
        prompt_name: str | None = ...,
        section_size: int | None = ...,
        sections: Sections | None = ...,
        ordered: bool = ...,
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        max_length: int | None = ...,
        vertical_chunk_size: int | None = ...,
        max_tokens_per_step: int | None = ...,
        max_in_flight: int | None = ...,
        on_error: Literal["raise"] = ...,
        progress: Callable[[Progress], None] | None = ...,
        special_tokens: SpecialTokens | None = ...,
        max_uncut_chars: int | None = ...,
        share_prefixes: bool = ...,
        checkpoints: Checkpoints | None = ...,
    ) -> Iterator[Embedding]: ...

    @overload
    def encode_stream(
        self,
        documents: Iterable[TextSource],
        *,
        prompt: str | None = ...,
        prompt_name: str | None = ...,
        section_size: int | None = ...,
        sections: Sections | None = ...,
        ordered: bool = ...,
        normalize_embeddings: bool | None = ...,
        truncate_dim: int | None = ...,
        max_length: int | None = ...,
        vertical_chunk_size: int | None = ...,
        max_tokens_per_step: int | None = ...,
        max_in_flight: int | None = ...,
        on_error: Literal["yield"],
        progress: Callable[[Progress], None] | None = ...,
        special_tokens: SpecialTokens | None = ...,
        max_uncut_chars: int | None = ...,
        share_prefixes: bool = ...,
        checkpoints: Checkpoints | None = ...,
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
            checkpoints: where long documents leave what a later call goes on from. Not with sections.

        The other arguments are those of `encode`.

        Raises:
            InvalidInputError: what is no iterable of documents, or an argument that cannot be. A document that is none
                is handled as `on_error` says.
        """
        documents = given_documents(documents)
        one_of("on_error", on_error, ("raise", "yield"))
        before = self._checked_prompt(prompt, prompt_name)
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
        prefixes = self._prefixes_for(tokenizer, before, share_prefixes)
        open_resumable = None
        if checkpoints is not None and sections is None:
            open_resumable = ResumableTexts(tokenizer, before, max_length, self._probe_id, prefixes, checkpoints).open

        def run(
            documents: Iterable[TextSource],
            sections: Sections | None,
            ordered: bool,
            on_error: Literal["raise", "yield"],
            progress: Callable[[Progress], None] | None,
        ) -> Iterator[Embedding | Failure]:
            texts = tokenized(
                documents, tokenizer, before, max_length, sections, self._probe_id, prefixes, open_resumable
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
        in_tokens, pooling = self._in_sections(sections)
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
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        vertical_chunk_size: int | None = None,
        max_tokens_per_step: int | None = None,
        max_in_flight: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        special_tokens: SpecialTokens | None = None,
        max_uncut_chars: int | None = None,
    ) -> Iterator[Embedding]:
        """The vectors of the sections of one text of any length, in one pass and in order, while the text arrives.

        The characters `char_start` to `char_end` of the vectors tile the text; nothing of it is held whole. See
        `thalweg.Sections` for what belongs to a section.

        Args:
            text: a str, bytes, pieces of one of them (cut anywhere) or an open file.
            by, every, mode, look_ahead: see `thalweg.Sections`. Characters may come from an iterator, which is read one
                position ahead of the text. Only a str or bytes can be cut by a function.
            max_length: tokens to which the text is cut, in mode "isolated" every section.

        The other arguments are those of `encode_stream`.

        Raises:
            InvalidInputError: an argument that cannot be, or boundaries that do not ascend inside the text.
            TokenizationError, OSError: the text cannot be read or tokenised; the sections before have been given.
            NumericalError: the model's numbers became inf or NaN.
        """
        sections = Sections(by, every, mode, look_ahead)
        if callable(by):
            whole_text(text)
        return self.encode_stream(
            [text],
            sections=sections,
            prompt=prompt,
            prompt_name=prompt_name,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            max_length=max_length,
            vertical_chunk_size=vertical_chunk_size,
            max_tokens_per_step=max_tokens_per_step,
            max_in_flight=max_in_flight,
            progress=progress,
            special_tokens=special_tokens,
            max_uncut_chars=max_uncut_chars,
        )

    def stream(
        self, text: TextSource, every: int = TOKENS, **options: Unpack[StreamOptions]
    ) -> Iterator[tuple[int, FloatArray]]:
        """Follow a text while it arrives: after every so many tokens, and at its end, how many there have been and the
        vector (d,) of the text so far, as if it ended there.

        The options and errors are those of `encode_sections`.
        """
        found = self.encode_sections(text, every=every, mode="prefix", **options)
        return running_totals(found)

    @torch.inference_mode()
    def after_pooling(self, vector: FloatArray) -> FloatArray:
        """(d,) pooled -> (d,): what the pooling makes of its means, and the embedding head in a model that has one."""
        joined = self.pooling.join(torch.from_numpy(vector)[None])[0]
        if self.head is None:
            return joined.numpy()
        return self.model.heads[self.head](joined.to(self.model.device)).cpu().numpy()


def _matrix(vectors: Any) -> FloatArray:
    """Vectors (n, d) or one (d,), as an array (n, d) of float32."""
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().cpu()
    try:
        matrix = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"vectors must be numbers (n, d), got {vectors!r:.80}") from error
    if matrix.ndim != 2:
        raise InvalidInputError(f"vectors must be (n, d) or (d,), got {matrix.shape}")
    return matrix
