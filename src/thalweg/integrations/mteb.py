"""thalweg's models as encoders of mteb.

    mteb.evaluate(ThalwegEncoder(), tasks, encode_kwargs={"vertical_chunk_size": 1024})

Texts go from mteb's data loader through packed steps, without padding and at any length. Batches of the loader are not
batches here, so `batch_size` says only how many texts are read at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from thalweg.embedder.dtypes import Dtype
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.loaded import log
from thalweg.embedder.loading import load
from thalweg.embedder.results import Embedding
from thalweg.errors import CheckpointError, InvalidInputError, MissingExtraError
from thalweg.integrations.mteb_instructions import Instructions, paper_instructions
from thalweg.models.quantized import Quantization, weight_bytes, weight_count
from thalweg.pooling.vectors import to_precision

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.models.model_meta import ScoringFunction
    from tqdm.auto import tqdm
except ImportError as error:
    raise MissingExtraError("thalweg.integrations.mteb needs: pip install 'thalweg[mteb]'") from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

__all__ = ["ThalwegEncoder"]

LASTING = ("max_length", "truncate_dim", "normalize_embeddings")
"""Options of `Embedder.encode` that change vectors: given once, they mark the results of mteb's cache as their own."""

PASSING = (*LASTING, "precision", "vertical_chunk_size", "max_tokens_per_step", "max_in_flight", "max_uncut_chars")
"""Options of `Embedder.encode` that `encode_kwargs` may hold."""

_LOADER = ("batch_size", "show_progress_bar")

_BLOCK = 64
"""Pairs compared at a time."""


class ThalwegEncoder(AbsEncoder):
    """A model of thalweg for `mteb.evaluate`.

    Args:
        model: an `Embedder`, or what `thalweg.load` takes: a folder, a hub id, None for the shipped model.
        revision, device, dtype, quantize: of `thalweg.load`.
        model_prompts: texts put before texts, by task name, task type or prompt type ("query", "document"), also joined
            ("STS12-query"); the most specific one counts, in mteb's order. None: the model's own prompts.
        instructions: "paper" puts `Instruct: …\\nQuery: ` and the task's instruction before everything but documents,
            as the paper's models want it; or `Instructions` of your own. Prompts of `model_prompts` by task name or
            type come before it.
        max_length, truncate_dim, normalize_embeddings: as for `Embedder.encode`. Nothing is cut unless asked for.

    Attributes:
        on_texts: called after each text with the number of those that are done, and of all.

    Raises:
        CheckpointError: the model cannot be loaded.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        model: str | Path | Embedder | None = None,
        revision: str | None = None,
        *,
        device: str | None = None,
        dtype: Dtype = None,
        quantize: Quantization | None = None,
        model_prompts: Mapping[str, str] | None = None,
        instructions: Literal["paper"] | Instructions | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool | None = None,
    ) -> None:
        if not isinstance(model, Embedder):
            model = load(model, revision=revision, device=device, dtype=dtype, quantize=quantize)
        if isinstance(instructions, str) and instructions != "paper":
            raise InvalidInputError(f"instructions must be 'paper', Instructions or None, got {instructions!r}")
        self.model: Embedder = model
        self.on_texts: Callable[[int, int], None] | None = None
        self.model_prompts = _prompts(model) if model_prompts is None else dict(model_prompts)
        self.instructions = paper_instructions() if instructions == "paper" else instructions
        values = (max_length, truncate_dim, normalize_embeddings)
        self.options = {name: value for name, value in zip(LASTING, values, strict=True) if value is not None}
        experiment: dict[str, Any] = dict(self.options)
        if model.quantization is not None:
            experiment["quantize"] = model.quantization
        if instructions is not None:
            experiment["instructions"] = instructions if isinstance(instructions, str) else "own"
        if model_prompts is not None:
            experiment["model_prompts"] = dict(model_prompts)
        self.mteb_model_meta = model_meta(model, experiment)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Vectors (n, d) of a data loader's texts, in its order.

        `kwargs` are mteb's `encode_kwargs`: `show_progress_bar`, `batch_size`, and those of `PASSING`. `max_length`,
        `truncate_dim` and `normalize_embeddings` belong into the constructor if results are cached.

        Raises:
            InvalidInputError: an option that does not exist.
        """
        options = {**self.options, **_checked(kwargs)}
        precision = options.pop("precision", "float32")
        width = options.get("truncate_dim") or self.model.dimension
        vectors = np.zeros((len(inputs.dataset), width), dtype=np.float32)  # type: ignore[arg-type]
        cut = 0
        prompt = self.prompt_of(task_metadata, prompt_type)
        results = self.model.encode_stream(_texts(inputs), prompt=prompt, ordered=False, **options)
        shown = kwargs.get("show_progress_bar", True)
        bar = tqdm(results, total=len(vectors), desc=task_metadata.name, unit="text", disable=not shown)
        for done, result in enumerate(bar, 1):
            assert isinstance(result, Embedding)  # failures are raised
            vectors[result.index] = result.vector
            cut += result.truncated
            if self.on_texts:
                self.on_texts(done, len(vectors))
        if cut:
            length = options["max_length"]
            log.warning("%s: max_length=%s cut %d of %d texts", task_metadata.name, length, cut, len(vectors))
        return cast("Array", to_precision(vectors, precision))

    def prompt_of(self, task: TaskMetadata, prompt_type: PromptType | None = None) -> str:
        """The text put before the texts of a task."""
        name = get_prompt_name(self.model_prompts, task, prompt_type)
        general = name in ("query", "document")
        if name is not None and not (general and self.instructions):
            return self.model_prompts[name] if self.model_prompts else ""
        if self.instructions:
            return self.instructions.prompt(task, prompt_type)
        return self.model.prompt()

    def similarity(self, embeddings1: Array, embeddings2: Array) -> torch.Tensor:
        """(n, m) float32 by the model's own measure; larger is nearer."""
        return torch.from_numpy(self.model.similarity(_matrix(embeddings1), _matrix(embeddings2)))

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> torch.Tensor:
        """(n,) float32: row by row."""
        a, b = _matrix(embeddings1), _matrix(embeddings2)
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(a), _BLOCK)]
        return torch.cat([self.similarity(a[rows], b[rows]).diagonal() for rows in blocks])


def model_meta(embedder: Embedder, experiment: Mapping[str, Any] | None = None) -> ModelMeta:
    """mteb's description of a model; `revision` is the fingerprint of its files, what is not known is None.

    experiment: settings that make its results another's, such as a cut.
    """
    experiment = experiment or {}
    tables = [module.weight for module in embedder.model.modules() if isinstance(module, torch.nn.Embedding)]
    local = Path(embedder.name).exists() or "/" not in embedder.name
    return ModelMeta(
        loader=_reload,
        loader_kwargs={"source": str(embedder.folder) if local else embedder.name},
        name=f"thalweg/{Path(embedder.name).resolve().name}" if local else embedder.name,
        revision=embedder.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=weight_count(embedder.model),
        n_embedding_parameters=sum(table.numel() for table in tables),
        memory_usage_mb=weight_bytes(embedder.model) / 2**20,
        max_tokens=experiment.get("max_length") or float("inf"),
        embed_dim=experiment.get("truncate_dim") or embedder.dimension,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        reference=None if local else f"https://huggingface.co/{embedder.name}",
        similarity_fn_name=ScoringFunction(embedder.embedding_config.similarity),
        use_instructions=bool(experiment.get("instructions") or embedder.prompts),
        training_datasets=None,
        experiment_kwargs=dict(experiment) or None,
    )


def _reload(name: str, revision: str | None, *, source: str, **options: Any) -> ThalwegEncoder:
    """The loader of a `ModelMeta` made here: the same model again, or an error.

    Raises:
        CheckpointError: the files have changed since.
    """
    encoder = ThalwegEncoder(source, **options)
    if revision is not None and encoder.model.fingerprint != revision:
        raise CheckpointError(
            f"{name}: the files of {source} have fingerprint {encoder.model.fingerprint}, but {revision} was asked for"
        )
    return encoder


def _prompts(model: Embedder) -> dict[str, str]:
    """The model's own, under mteb's names."""
    name = model.prompt_name_of("document")
    return dict(model.prompts) if name is None else {**model.prompts, "document": model.prompts[name]}


def _checked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name not in (*PASSING, *_LOADER):
            known = ", ".join((*PASSING, *_LOADER))
            raise InvalidInputError(f"encode_kwargs: no option {name!r}; there are {known}")
    return {name: value for name, value in kwargs.items() if name in PASSING}


def _texts(inputs: DataLoader[BatchedInput]) -> Iterator[str]:
    for batch in inputs:
        yield from batch["text"]


def _matrix(vectors: Array) -> Any:
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().float().cpu().numpy()
    return np.asarray(vectors, dtype=np.float32)
