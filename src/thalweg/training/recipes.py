"""Recipes: everything that decides a training run, in one frozen dataclass.

A recipe is a function that returns a complete `Recipe`. What it says can be printed, changed value by value, and is
written beside the model that came out of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from thalweg.errors import InvalidInputError
from thalweg.gradients.state_passing import StatePassing
from thalweg.gradients.steps import Checkpointing

Objective = Literal["contrastive", "distill"]
Precision = Literal["auto", "float32", "bfloat16"]

RECIPE_FILE = "recipe.json"


def _about(default: Any, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, but for the model and the data; each field says what it is (`describe`).

    Raises:
        InvalidInputError: a value that cannot be, quoting it.
    """

    name: str = _about("custom", "name of the recipe")
    objective: Objective = _about("contrastive", "InfoNCE; or distill: a teacher's vectors, similarities")  # noqa: RUF009

    temperature: float = _about(0.02, "temperature of InfoNCE, on cosines")
    negatives: int | None = _about(None, "most hard negatives used of a row; none: all")
    no_duplicates: bool = _about(True, "no text twice in a batch, where it would be its own negative")
    instructions: bool = _about(True, "put each data set's instruction before its queries")
    matryoshka: tuple[int, ...] = _about((), "widths that vectors can be truncated to, besides their own")
    teacher: str | None = _about(None, "teacher for distill: a model of sentence-transformers, or thalweg:MODEL")
    vector_weight: float = _about(1.0, "distill: weight of the squared distance to the teacher's vectors")
    similarity_weight: float = _about(10.0, "distill: weight of the squared error of the batch's similarities")

    epochs: int = _about(1, "passes over the data")
    max_steps: int | None = _about(None, "stop after this many steps; none: when the epochs are over")
    batch_size: int = _about(2048, "rows per step over all processes, all from one data set")
    gradient_cache: bool = _about(True, "GradCache: two passes over a batch, in memory for mini_batch_tokens")
    mini_batch_tokens: int = _about(16_384, "tokens that are run at a time under gradient_cache")
    max_length: int | None = _about(512, "tokens that a text is truncated to; none: never")
    learning_rate: float = _about(4e-4, "highest learning rate of AdamW")
    weight_decay: float = _about(0.1, "weight decay of AdamW, on the matrices of linear layers and embeddings")
    warmup_steps: int = _about(100, "steps in which the learning rate rises; a tenth of a run that has no more")
    max_grad_norm: float = _about(1.0, "gradients are scaled down to this norm; 0: never")
    precision: Precision = _about("auto", "precision of products (autocast); auto: bfloat16 on CUDA, else float32")  # noqa: RUF009

    lora_rank: int = _about(16, "rank of adapters on every linear layer; 0: train all weights instead")
    lora_alpha: float = _about(16, "adapters are scaled by alpha / rank")
    lora_dropout: float = _about(0.0, "dropout on the input of adapters")
    quantize_4bit: bool = _about(False, "QLoRA: frozen weights in 4 bits; needs bitsandbytes and CUDA")

    vertical_chunk_size: int | None = _about(
        None, "keep states between chunks of this many tokens; none: all activations"
    )
    max_tokens_per_step: int | None = _about(None, "tokens of chunks that run together; none: as in inference")
    two_level: bool = _about(False, "with vertical_chunk_size: keep sqrt(n) states of n, for one more forward pass")
    offload: bool = _about(False, "with vertical_chunk_size: keep states in the CPU's memory")
    detach_every: int | None = _about(None, "truncated back-propagation: no gradient crosses every so many chunks")
    state_passing: float = _about(0.0, "probability of a text to start from the final state of an earlier one")
    state_passing_size: int = _about(32, "states that are held for that")

    save_every: int = _about(100, "steps between checkpoints, which a killed run is resumed from")
    dev_every: int = _about(100, "steps between scores on the dev sets")
    seed: int = _about(0, "seed of the order of batches, adapters and dropout")

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry.name, getattr(self, entry.name), HINTS[entry.name])
        for names, least in ((_AT_LEAST_1, 1), (_AT_LEAST_0, 0)):
            for name in names:
                value = getattr(self, name)
                if value is not None and value < least:
                    raise InvalidInputError(f"{name} must be at least {least}, got {value!r}")
        for name in ("temperature", "learning_rate", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.seed >= 2**32:
            raise InvalidInputError(f"seed must be below 2**32, got {self.seed!r}")
        for name in ("lora_dropout", "state_passing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} must be in 0..1, got {getattr(self, name)!r}")
        if any(width < 1 for width in self.matryoshka):
            raise InvalidInputError(f"matryoshka must be widths of at least 1, got {self.matryoshka!r}")
        if self.objective == "distill" and not (self.vector_weight or self.similarity_weight):
            raise InvalidInputError("vector_weight=0 and similarity_weight=0 leave distill nothing to learn")
        if self.quantize_4bit and not self.lora_rank:
            raise InvalidInputError("quantize_4bit=true freezes all weights and lora_rank=0 adds no adapters")
        if self.vertical_chunk_size is None:
            for name in ("max_tokens_per_step", "two_level", "offload", "detach_every"):
                if getattr(self, name):
                    raise InvalidInputError(f"{name}={_show(getattr(self, name))} needs vertical_chunk_size")
        self.checkpointing()

    def checkpointing(self) -> Checkpointing | None:
        """How long texts are run, or None for whole ones."""
        if self.vertical_chunk_size is None:
            return None
        return Checkpointing(
            self.vertical_chunk_size, self.max_tokens_per_step, self.offload, self.two_level, self.detach_every
        )

    def passing(self) -> StatePassing | None:
        """A fresh store of states for texts to start from, or None."""
        return StatePassing(self.state_passing, self.state_passing_size) if self.state_passing else None

    def describe(self) -> list[tuple[str, str, str]]:
        """Each field's name, its value as `override` reads it, and what it is."""
        return [(entry.name, _show(getattr(self, entry.name)), entry.metadata["about"]) for entry in fields(self)]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


HINTS = get_type_hints(Recipe)
_AT_LEAST_1 = (
    "negatives",
    "epochs",
    "max_steps",
    "batch_size",
    "mini_batch_tokens",
    "max_length",
    "state_passing_size",
    "save_every",
    "dev_every",
)
_AT_LEAST_0 = (
    "vector_weight",
    "similarity_weight",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "lora_rank",
    "seed",
)


def e5_mistral() -> Recipe:
    """The recipe of e5-mistral (arXiv 2401.00368) as the paper on recurrent embedders used it (arXiv 2604.18199).

    InfoNCE at temperature 0.02 with in-batch and hard negatives, batches of 2048, LoRA of rank 16 on all linear layers,
    an instruction before queries. It suits models of some billion parameters; small ones want a larger learning rate
    (2.4e-3 was used for 1.3 billion).
    """
    return Recipe(name="e5-mistral", negatives=1)


def distill() -> Recipe:
    """A smaller model learns the vectors of a teacher and the similarities within a batch; all weights are trained."""
    return Recipe(
        name="distill",
        objective="distill",
        negatives=1,
        no_duplicates=False,
        instructions=False,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.01,
        lora_rank=0,
    )


def tiny() -> Recipe:
    """A short run that trains all weights on a little data, for a first try and for tests; no pretraining needed."""
    return Recipe(
        name="tiny",
        temperature=0.05,
        epochs=3,
        batch_size=32,
        gradient_cache=False,
        max_length=256,
        learning_rate=2e-3,
        weight_decay=0.01,
        warmup_steps=5,
        lora_rank=0,
        save_every=50,
        dev_every=50,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"e5-mistral": e5_mistral, "distill": distill, "tiny": tiny}


def find_recipe(name_or_file: str) -> Recipe:
    """A recipe by name, or the one that a `recipe.json` holds.

    Raises:
        InvalidInputError: neither is there, or the file holds no recipe of this version.
    """
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]()
    path = Path(name_or_file)
    if not path.is_file():
        raise InvalidInputError(f"there is no recipe {name_or_file!r}: {', '.join(RECIPES)}, or a {RECIPE_FILE}")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is no recipe: {error}") from error
    stated = written.get("recipe", written) if isinstance(written, dict) else written
    if not isinstance(stated, dict):
        raise InvalidInputError(f"{path} is no recipe: an object of settings is wanted, not {stated!r:.60}")
    _known(stated, str(path))
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stated.items()}
    return Recipe(**values)


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with some fields set, each as "name=value".

    Raises:
        InvalidInputError: an unknown name, or a value that does not fit.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InvalidInputError(f"{setting!r} sets nothing; write name=value")
        _known([name.strip()], "the recipe")
        changes[name.strip()] = _parse(name.strip(), text.strip())
    return replace(recipe, **changes)


def _known(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in HINTS:
            raise InvalidInputError(f"{where} has no setting {name!r}; known are {', '.join(HINTS)}")


def _parse(name: str, text: str) -> Any:
    hint = HINTS[name]
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    try:
        if get_origin(hint) is tuple:
            return tuple(int(part) for part in text.replace(",", " ").split())
        if bool in kinds:
            return {"true": True, "false": False}[text.lower()]
        if int in kinds:
            return int(text.replace("_", ""))
        if float in kinds:
            return float(text)
    except (ValueError, KeyError):
        raise InvalidInputError(f"{name}={text!r}: {_wanted(hint)} is wanted") from None
    return text


def _check(name: str, value: Any, hint: Any) -> None:
    """Fields of files and of callers have the types that the dataclass states."""
    kinds = _kinds(hint)
    if get_origin(hint) is Literal:
        fits = value in get_args(hint)
    elif get_origin(hint) is tuple:
        fits = isinstance(value, tuple) and all(type(part) is int for part in value)
    else:
        fits = type(value) in kinds or (float in kinds and type(value) is int)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidInputError(f"{name}={value!r}: {_wanted(hint)} is wanted")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidInputError(f"{name}={value!r} is not text: it holds a lone surrogate")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _wanted(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "whole numbers with commas between them"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return " or ".join(words[kind] for kind in _kinds(hint))


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
