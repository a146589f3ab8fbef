"""What a checkpoint format is: one row of data (`Format`) and its names (`TensorMap`).

A family puts its rows in a module of its own (`mamba2.py` is the one to copy) and `formats.py` lists them all.
Nothing outside those rows knows a format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.checkpoints.embedding import EmbeddingConfig
from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.tokens import TokenIds
from thalweg.system.cached import cached_property

HYBRID_HINT = (
    "memory would grow with length; use thalweg.integrations.transformers.chunked_forward with the original model"
)
"""What the error about a model with attention layers goes on with."""


@dataclass(frozen=True)
class TensorMap:
    """One kind of tensor: how the model calls it and how the file does.

    Args:
        name: parameter of the model, `{i}` standing for the layer; None for a tensor that belongs to the format
            but is not used here (a language-model head).
        stored: its names in the file without the format's prefix; the first is the one written. `{*}` stands for
            anything, for tensors that are not used.
        squeeze: an axis of length 1 that the file has and the model has not.
        ones: axes of length 1 in front that the file has and the model has not; a file without them is read too.
        transpose: the file holds the transposed matrix.
        part: (i, n): the file's tensor holds n parameters of equal size along its first axis, and this row is for the
            i-th. The other rows name the same stored tensor. Such rows are read only, never written.
        keep_float32: at least float32 in the model, whatever dtype the weights are asked in. For the few numbers of a
            head that go through an exponential, where bfloat16 would lose digits and save nothing.
    """

    name: str | None
    stored: tuple[str, ...]
    squeeze: int | None = None
    ones: int = 0
    transpose: bool = False
    keep_float32: bool = False
    part: tuple[int, int] | None = None

    def load(self, tensor: Tensor) -> Tensor:
        """The file's tensor in the model's shape (a view)."""
        if self.part is not None:
            i, n = self.part
            tensor = tensor.unflatten(0, (n, -1))[i]
        if self._has_ones(tuple(tensor.shape)):
            tensor = tensor.flatten(0, self.ones)
        if self.transpose:
            tensor = tensor.t()
        return tensor if self.squeeze is None else tensor.squeeze(self.squeeze)

    def loaded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape after `load`, from the file's shape alone; None where the tensor cannot be brought into it."""
        if self.part is not None:
            n = self.part[1]
            if not shape or shape[0] % n:
                return None
            shape = (shape[0] // n, *shape[1:])
        if self._has_ones(shape):
            shape = shape[self.ones :]
        if self.transpose:
            shape = shape[::-1]
        if self.squeeze is None:
            return shape
        if len(shape) <= self.squeeze or shape[self.squeeze] != 1:
            return None
        return shape[: self.squeeze] + shape[self.squeeze + 1 :]

    def loaded_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in the model where the weights are asked in `dtype`."""
        return torch.promote_types(dtype, torch.float32) if self.keep_float32 else dtype

    def save(self, tensor: Tensor) -> Tensor:
        """The model's tensor in the file's shape (a view)."""
        return tensor.t() if self.transpose else tensor.view(self.saved_shape(tuple(tensor.shape)))

    def saved_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape after `save`, from the model's shape alone."""
        if self.squeeze is not None:
            shape = (*shape[: self.squeeze], 1, *shape[self.squeeze :])
        return (1,) * self.ones + (shape[::-1] if self.transpose else shape)

    def _has_ones(self, shape: tuple[int, ...]) -> bool:
        return 0 < self.ones < len(shape) and set(shape[: self.ones]) == {1}


@dataclass(frozen=True)
class Format:
    """One public checkpoint format of one family.

    Args:
        name: unique, shown to users, for example "mamba2/transformers".
        family: the model family, for example "mamba2".
        config_file: the JSON file that describes the model; None for a format without one, whose "config" is the shape
            of every tensor by name.
        looks_like: what a config of this format holds, in words, for the error that no format fits.
        recognises: whether a parsed config is of this format (well-formed or not).
        read_config: the family's config dataclass from the parsed file; raises CheckpointError for variants that
            the model does not support.
        model_class: built as `model_class(config)` on the meta device; its parameters are then assigned.
        tensor_maps: every tensor that the format may hold.
        prefixes: what may precede each stored name; the first is the one written.
        token_ids: ids to assume where no file of the folder states them.
        embedding: how vectors are made where no file of the folder states it; None for plain language models.
        write_config: the inverse of `read_config` for the one format of a family that `save_checkpoint` writes.
        in_transformers: whether transformers opens what is written, without code of others.
    """

    name: str
    family: str
    config_file: str | None
    looks_like: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read_config: Callable[[Fields], Any]
    model_class: type[nn.Module]
    tensor_maps: tuple[TensorMap, ...]
    prefixes: tuple[str, ...] = ("",)
    token_ids: TokenIds = field(default_factory=TokenIds)
    embedding: EmbeddingConfig | None = None
    write_config: Callable[[Any], dict[str, Any]] | None = None
    in_transformers: bool = False

    def find(self, stored: str) -> tuple[TensorMap, str | None] | None:
        """The first row that a name in the file belongs to, and the parameter it fills; None for an unknown name."""
        return next(iter(self.find_all(stored)), None)

    def find_all(self, stored: str) -> list[tuple[TensorMap, str | None]]:
        """All rows for a name in the file: several where it may hold several parameters, or where its shape decides."""
        matches = [(tensor_map, pattern.fullmatch(stored)) for pattern, tensor_map in self._patterns]
        return [
            (tensor_map, tensor_map.name and tensor_map.name.replace("{i}", match.groupdict().get("i") or ""))
            for tensor_map, match in matches
            if match
        ]

    def layers(self, stored: Iterable[str]) -> set[int]:
        """The numbers of the layers that some names in the file belong to."""
        matches = (pattern.fullmatch(name) for name in stored for pattern in self._layer_patterns)
        return {int(match["i"]) for match in matches if match}

    def stored_name(self, name: str) -> tuple[TensorMap, str]:
        """The row of a parameter of the model, and the name that it is written under."""
        generic, layer = generic_name(name)
        for tensor_map in self.tensor_maps:
            if tensor_map.name == generic and tensor_map.part is None:
                return tensor_map, self.prefixes[0] + tensor_map.stored[0].replace("{i}", layer)
        raise AssertionError(f"format {self.name} has no row for the parameter {name}")

    @cached_property
    def _layer_patterns(self) -> list[re.Pattern[str]]:
        return [pattern for pattern, _ in self._patterns if "i" in pattern.groupindex]

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], TensorMap]]:
        prefix = "|".join(re.escape(p) for p in self.prefixes)
        return [
            (re.compile(f"(?:{prefix}){_as_regex(stored)}"), tensor_map)
            for tensor_map in self.tensor_maps
            for stored in tensor_map.stored
        ]


def _as_regex(stored: str) -> str:
    # No leading zeros: "layers.01" and "layers.1" must not both fill layer 1.
    return re.escape(stored).replace(r"\{i\}", "(?P<i>0|[1-9][0-9]{0,8})").replace(r"\{\*\}", ".+")


def generic_name(name: str) -> tuple[str, str]:
    """ "layers.12.norm.weight" → ("layers.{i}.norm.weight", "12")."""
    match = re.search(r"\.(\d+)\.", name)
    if match is None:
        return name, ""
    return name[: match.start(1)] + "{i}" + name[match.end(1) :], match[1]
