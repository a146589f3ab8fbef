"""The first module of a `SentenceTransformer`: text to pooled vectors, by the engine or with gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

import thalweg
from thalweg.checkpoints import keeps_float32, resolve, save_model_settings, stated_dtype, write_model
from thalweg.embedder.dtypes import Dtype
from thalweg.embedder.embedder import Embedder
from thalweg.errors import InvalidInputError
from thalweg.gradients.embed import embed_for_training, is_random
from thalweg.gradients.state_passing import StatePassing
from thalweg.gradients.steps import Checkpointing
from thalweg.integrations.sentence_transformers.features import Features, pack, unpack
from thalweg.packing import Packing

log = logging.getLogger("thalweg")


class ThalwegModule(InputModule):
    """A recurrent model that embeds texts of any length in constant memory, packed and without padding.

    `encode(…, vertical_chunk_size=, max_tokens_per_step=, max_in_flight=)` sets the bounds of a run, which change speed
    and memory only (`thalweg.Schedule`). Texts of one `batch_size` are packed together: the tokens of a batch cost 12
    bytes each and no text is padded, so batches may be large and a long text may be in one with short ones.

    Where gradients are wanted a batch goes through the model in one pass and keeps its activations; with
    `checkpointing` it keeps states between chunks of its texts instead, and texts of any length can be trained on.

    Attributes:
        checkpointing: chunks of training texts and what is kept between them, or None. Not saved with the model.
        state_passing: where training texts start, or None: anew.
    """

    forward_kwargs = {"vertical_chunk_size", "max_tokens_per_step", "max_in_flight"}  # noqa: RUF012 - not to be changed

    def __init__(
        self,
        embedder: Embedder,
        *,
        checkpointing: Checkpointing | None = None,
        state_passing: StatePassing | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.checkpointing = checkpointing
        self.state_passing = state_passing
        self.embedder = embedder
        self.model = embedder.model.requires_grad_(True)
        self._max_length: int | None = None

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """A `thalweg.tokenization.tokenizer.Tokenizer`."""
        return self.embedder.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """Tokens to cut texts to. None, as it is unless set, cuts nothing; a warning counts what was cut."""
        return self._max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._max_length = value

    def get_embedding_dimension(self) -> int:
        """Width D of the vectors."""
        return self.embedder.dimension

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The packed ids of texts (see `features`), each after `prompt`, with EOS where the model wants it.

        Of the other arguments count `max_length`, which the trainer passes, and `processing_kwargs={"text":
        {"max_length": n, "truncation": True}}`: they cut as `max_seq_length` does.

        Raises:
            InvalidInputError: an input that is no str, or unknown `processing_kwargs`.
            TokenizationError: a text that cannot be tokenised exactly in bounded memory.
        """
        ids = self.embedder.tokenize(list(inputs), prompt or "")
        limits = (_limit(kwargs.get("processing_kwargs")), kwargs.get("max_length"), self._max_length)
        limit = next((n for n in limits if n is not None), None)
        cut = 0
        if limit is not None:
            shortened = [self.tokenizer.shorten(row, limit) for row in ids]
            cut = sum(was_cut for _, was_cut in shortened)
            if cut:
                log.warning("max_seq_length=%s cut %d of %d texts", limit, cut, len(ids))
            ids = [row for row, _ in shortened]
        return pack(ids) | {"has_prompt": bool(prompt), "n_cut": cut}

    def forward(self, features: dict[str, Any], **schedule: int | None) -> dict[str, Any]:
        """Adds `sentence_embedding` (B, D) float32, pooled and not normalised."""
        tokens, lengths = unpack(features)
        wants_gradients = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        if wants_gradients or is_random(self.model, self.state_passing):
            vectors = self._in_training(tokens, lengths)
        else:
            rows = [row.numpy() for row in tokens.cpu().split(lengths)]
            vectors = torch.from_numpy(self.embedder.encode_ids(rows, **schedule)).to(tokens.device)
        return Features({**features, "sentence_embedding": vectors}, lambda: self._token_vectors(tokens, lengths))

    def _in_training(self, tokens: Tensor, lengths: list[int]) -> Tensor:
        pooling = self.embedder.pooling
        vectors = embed_for_training(
            self.model,
            tokens,
            lengths,
            pooling=pooling,
            checkpointing=self.checkpointing,
            state_passing=self.state_passing if self.training else None,
        )
        vectors = pooling.finish(vectors, tokens, lengths)
        head = self.embedder.head
        return vectors if head is None else self.model.heads[head](vectors)

    def _token_vectors(self, tokens: Tensor, lengths: list[int]) -> list[Tensor]:
        """The hidden vectors (n, D) float32 of each text's tokens, a vertical chunk at a time."""
        chunk = self.embedder.schedule().vertical_chunk_size
        results = []
        for row in tokens.split(lengths):
            state, parts = None, []
            for part in row.split(chunk):
                packing = Packing([len(part)], n_carried=int(state is not None), wanted=[0], device=part.device)
                hidden, state = self.model.forward(part, packing, state)
                parts.append(hidden)
            results.append(torch.cat(parts))
        return results

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ThalwegModule:
        """Moves and casts as of any module, but for the few parameters that need float32 (`half()`, `bfloat16()`)."""
        wide = {id(p) for name, p in self.model.named_parameters() if keeps_float32(self.model, name)}

        def careful(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrow = id(tensor) in wide and result.is_floating_point() and result.itemsize < 4
            return tensor.to(result.device) if narrow else result

        super()._apply(careful, recurse)  # type: ignore[no-untyped-call]
        return self

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Weights (always as safetensors, in the dtype they have now), config.json, tokenizer and settings.

        Raises:
            InvalidInputError: a model whose format cannot be written (RWKV-7 with embedding heads) or has adapters.
        """
        if getattr(self.model, "peft_config", None):
            raise InvalidInputError(
                "a folder holds a model without adapters; thalweg.training.merge_lora(model[0].model) adds them to the "
                "weights, and then it can be saved"
            )
        folder, embedder = Path(output_path), self.embedder
        embedding = embedder.saved_config
        write_model(
            folder,
            self.model,
            tokenizer_folder=embedder.folder,
            embedding=embedding,
            dtype=embedder.dtype,
            tokens=embedder.token_ids,
        )
        save_model_settings(folder, embedding)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> ThalwegModule:
        """Called by `SentenceTransformer` for a folder whose modules.json names this class.

        Of `model_kwargs`, `dtype`, `head`, `special_tokens` and `max_uncut_chars` (see `thalweg.load`), `checkpointing`
        and `state_passing` mean something.
        Without a dtype the model gets the one that its config.json states, as the stock modules do. Other arguments for
        transformers are left out with a warning.

        Raises:
            CheckpointError: the folder cannot be loaded.
            InvalidInputError: a backend other than torch.
        """
        backend = kwargs.get("backend", "torch")
        if backend != "torch":
            raise InvalidInputError(f"thalweg runs its models itself: backend must be 'torch', not {backend!r}")
        given = dict(kwargs.get("model_kwargs") or {})
        dtype: Dtype = given.pop("dtype", given.pop("torch_dtype", None))
        chosen = {name: given.pop(name, None) for name in ("head", "special_tokens", "max_uncut_chars")}
        training = {name: given.pop(name, None) for name in ("checkpointing", "state_passing")}
        ignored = [*given, *(kwargs.get("processor_kwargs") or {}), *(kwargs.get("config_kwargs") or {})]
        if ignored:
            log.warning("these arguments are for transformers and mean nothing here: %s", ", ".join(sorted(ignored)))
        folder = resolve(
            str(Path(model_name_or_path) / subfolder) if subfolder else model_name_or_path,
            revision=None if Path(model_name_or_path).is_dir() else revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
        )
        if dtype in (None, "auto"):
            dtype = stated_dtype(folder)
        return cls(thalweg.load(folder, device="cpu", dtype=dtype, **chosen), **training)


def _limit(processing_kwargs: dict[str, Any] | None) -> int | None:
    text = dict((processing_kwargs or {}).get("text", {}))
    limit, cuts = text.pop("max_length", None), text.pop("truncation", True)
    unknown = [*(key for key in processing_kwargs or {} if key != "text"), *text]
    if unknown:
        raise InvalidInputError(
            f"processing_kwargs {', '.join(map(repr, unknown))} mean nothing here; known is "
            '{"text": {"max_length": 512, "truncation": True}}'
        )
    return limit if cuts else None
