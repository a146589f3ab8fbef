"""A model that has been loaded: what it is, and what it needs to make vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from thalweg import kernels
from thalweg.checkpoints import Checkpoint, EmbeddingConfig, TokenIds
from thalweg.checkpoints.fingerprint import fingerprint
from thalweg.checks import text
from thalweg.embedder.devices import check_device
from thalweg.embedder.dtypes import Dtype, dtype_of_products
from thalweg.embedder.export import ExportFormat, export
from thalweg.embedder.renamed import renamed
from thalweg.embedder.sections import Sections, chosen_sections
from thalweg.embedder.similarity import similarity
from thalweg.engine.memory_plan import MemoryPlan, plan_memory
from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.quantized import Quantization, quantization_of
from thalweg.pooling import Mean, Pooling, make_pooling
from thalweg.pooling.vectors import FloatArray
from thalweg.system.cached import cached_property
from thalweg.tokenization.backend import MAX_UNCUT_CHARS, SpecialTokens
from thalweg.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("thalweg")

Side: TypeAlias = Literal["query", "document"]

PROMPT_NAMES: dict[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What authors of models call their prompts."""


class LoadedModel:
    """A model with its tokenizer and its way of making vectors: all of `Embedder` but the making itself."""

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
        self.probe_id = checkpoint.eos_token_id
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

    def to(self, device: str | torch.device) -> Self:
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
    def appends_eos(self) -> bool:
        """Whether every text ends with EOS."""
        return self.embedding_config.append_eos

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
        return self.fingerprint_reading(self.special_tokens)

    def fingerprint_reading(self, special_tokens: SpecialTokens) -> str:
        """The fingerprint of this model, were it loaded with these `special_tokens`."""
        chosen = None if special_tokens == self.embedding_config.special_tokens else special_tokens
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
        _, pooling = self.in_sections(chosen_sections(section_size, sections))
        return plan_memory(self.model, self.schedule(**schedule), pooling)

    def in_sections(self, sections: Sections | None) -> tuple[TokenSections | None, Pooling]:
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

    def checked_prompt(self, prompt: str | None, prompt_name: str | None) -> str:
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

    def prompt_name_of(self, side: Side) -> str | None:
        """The name of the model's prompt for queries or documents, as its author calls it; None if it has none."""
        return next((name for name in PROMPT_NAMES[side] if name in self.prompts), None)

    def similarity(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """(n, m) float32: how alike each of a (n, d) is to each of b (m, d), by the model's own measure.

        Cosine or dot product; for euclidean and manhattan the negative distance, so that larger is always closer.

        Raises:
            InvalidInputError: no vectors of numbers, or vectors of different widths.
        """
        return similarity(a, b, self.embedding_config.similarity)

    @torch.inference_mode()
    def after_pooling(self, vector: FloatArray) -> FloatArray:
        """(d,) pooled -> (d,): what the pooling makes of its means, and the embedding head in a model that has one."""
        joined = self.pooling.join(torch.from_numpy(vector)[None])[0]
        if self.head is None:
            return joined.numpy()
        return self.model.heads[self.head](joined.to(self.model.device)).cpu().numpy()
