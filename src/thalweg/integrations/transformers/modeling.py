"""thalweg's models as models of transformers: the same arguments and outputs, with padding and caches exact.

Legend: B rows, T columns of the batch (padding included), D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from thalweg.checkpoints.fields import Fields
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.formats import find_format, keep_float32_, keeps_float32
from thalweg.engine.schedule import Schedule
from thalweg.errors import InvalidInputError
from thalweg.families import FAMILIES, TransformersClass
from thalweg.integrations.transformers.batches import Step, check_batch, steps
from thalweg.integrations.transformers.cache import RecurrentCache
from thalweg.integrations.transformers.configs import CONFIGS
from thalweg.integrations.transformers.files import stored_tensors, write_config
from thalweg.integrations.transformers.pretrained import load
from thalweg.models.protocol import State


@dataclass
class RecurrentModelOutput(ModelOutput):
    """last_hidden_state: (B, T, D) float32 after the final norm, zero at padding; cache: for the next call."""

    last_hidden_state: Tensor | None = None
    cache: RecurrentCache | None = None

    @property
    def cache_params(self) -> RecurrentCache | None:
        """The cache, as transformers called it before 5.24."""
        return self.cache


class ThalwegModel(transformers.PreTrainedModel):
    """A recurrent language model without its head, of any family.

    `ThalwegModel.from_pretrained` opens every format that `thalweg.load` opens and returns the class of the family.

    Without gradients a call goes through the model in steps of at most `max_tokens_per_step` tokens, so that beside its
    output it takes the memory of a step.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _supports_sdpa = _supports_flash_attn = True  # there is no attention that could be computed wrongly

    format: ClassVar[Format]
    """The format it is read from and written in."""

    def __init__(self, config: Any, *, stack: nn.Module | None = None) -> None:
        """A model with random weights; `stack`: with these."""
        super().__init__(config)
        self.max_tokens_per_step = Schedule().max_tokens_per_step
        self.gradient_checkpointing = False
        self.stack: Any = self._random_stack(config) if stack is None else stack
        self._register_load_state_dict_pre_hook(self._rename_stored)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache_params: RecurrentCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> RecurrentModelOutput | tuple[Any, ...]:
        """The hidden vectors of a batch, or of the next chunk of it.

        Args:
            input_ids: int (B, T).
            attention_mask: (B, T), 1 at tokens and 0 at padding, which may be anywhere and is never computed; None: no
                padding. Also the mask of all chunks so far, of which the last T columns count.
            cache, cache_params: what the call for the chunk before returned; it is moved on. transformers names it the
                first way since 5.24 and the second way before.
            use_cache: whether to return the states; None: as the config says, but not while training.
            output_hidden_states: not available.
            return_dict: False for a tuple; None: as the config says.
            token_type_ids, position_ids: some tokenizers make them; a recurrent model has no use for them.

        Raises:
            InvalidInputError: ids, a mask or a cache that do not fit, or hidden states of the layers between.
        """
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            raise InvalidInputError("output_hidden_states is not available; only last_hidden_state is")
        given = cache_params if cache is None else cache
        if cache_params is not None and given is not cache_params:
            raise InvalidInputError("cache and cache_params are two names of one argument; give one of them")
        mask = check_batch(input_ids, attention_mask, given)
        assert input_ids is not None
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", True)) and not self.training
        moved = RecurrentCache(len(mask)) if given is None else given.copy()
        hidden = self._hidden(input_ids, mask, moved, keep=use_cache)
        moved.positions += mask.shape[1]
        moved.lengths = [before + now for before, now in zip(moved.lengths, mask.sum(1).tolist(), strict=True)]
        if use_cache and given is not None:
            given.become(moved)  # only now: a call that fails leaves it as it was
            moved = given
        output = RecurrentModelOutput(last_hidden_state=hidden, cache=moved if use_cache else None)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _hidden(self, input_ids: Tensor, mask: Tensor, cache: RecurrentCache, *, keep: bool) -> Tensor:
        """(B, T, D) float32; the cache has the states afterwards."""
        checkpointed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        in_steps = checkpointed or not torch.is_grad_enabled()
        device = self.stack.device
        hidden = torch.zeros(mask.numel(), self.stack.d_model, dtype=torch.float32, device=device)
        for step in steps(
            input_ids,
            mask,
            cache,
            max_tokens=self.max_tokens_per_step if in_steps else None,
            keep=keep,
            device=device,
        ):
            run = self._checkpointed if checkpointed else self._run
            vectors, state = run(step, cache.take(step.carried))
            hidden.index_copy_(0, step.positions, vectors)
            cache.put(step.kept, state, step.later)
        return hidden.view(*mask.shape, -1)

    def _run(self, step: Step, state: State | None) -> tuple[Tensor, State]:
        vectors, new_state = self.stack(step.tokens, step.packing, state)
        return vectors.float(), new_state

    def _checkpointed(self, step: Step, state: State | None) -> tuple[Tensor, State]:
        """All layers of a step under one activation checkpoint: what is kept is the state between steps."""
        function = self._gradient_checkpointing_func
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise InvalidInputError("use_reentrant=True loses the gradients of carried states; pass False")
        result: tuple[Tensor, State] = function(self._run, step, state)
        return result

    # -- what transformers expects of a model ------------------------------------------------------------------------

    @classmethod
    def _random_stack(cls, config: Any) -> nn.Module:
        stack = cls.format.model_class(cls.format.read_config(Fields(config.to_dict(), type(config).__name__)))
        keep_float32_(stack)
        return stack

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ThalwegModel:
        """Moves and casts as of any module, but for the few parameters that need float32 (`half()`, `bfloat16()`)."""
        wide = {id(p) for name, p in self.stack.named_parameters() if keeps_float32(self.stack, name)}

        def careful(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrow = id(tensor) in wide and result.is_floating_point() and result.itemsize < 4
            return tensor.to(result.device) if narrow else result

        super()._apply(careful, recurse)  # type: ignore[no-untyped-call]
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: modules have their initial values when they are made."""

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.stack.embeddings
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.stack.embeddings = value

    @classmethod
    def is_remote_code(cls) -> bool:
        """False: this code is installed and need not be copied into folders, also where a folder named it."""
        return False

    # -- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A model from a local folder, a hub id or a `.pth` file, in eval mode, with gradients.

        Args:
            config: as AutoModel passes it; it must describe the checkpoint.
            dtype: of the weights; None and "auto" take that of config.json, else that of the file. (`thalweg.load`
                takes float32 on the CPU.)
            device_map: one device, or "auto" for CUDA where there is one; None is the CPU.
            revision, token, cache_dir, local_files_only: as in `thalweg.load`.

        Raises:
            CheckpointError: the model cannot be found or loaded.
            InvalidInputError: a model of another family, a config that does not describe it, or an argument that has
                no meaning here.
        """
        return load(cls, MODELS, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]  # its arguments are those of the release at hand
        self, save_directory: Any, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers, in the family's public format: `thalweg.load` and the format's own library open it.

        AutoModel opens a folder of a family that transformers lacks with `trust_remote_code=True` alone
        (`checkpoints/auto_map.py`).
        """
        tensors = self.state_dict() if state_dict is None else state_dict
        stored = stored_tensors(self.format, "stack.", tensors)
        super().save_pretrained(save_directory, state_dict=stored, **kwargs)
        if kwargs.get("is_main_process", True):
            write_config(Path(save_directory), self.format, self.stack.config)

    def _rename_stored(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """`load_state_dict` also takes the tensors of a saved file by its names, as transformers' Trainer does."""
        for name in self.stack.state_dict():
            tensor_map, stored = self.format.stored_name(name)
            if prefix + stored in state_dict and f"{prefix}stack.{name}" not in state_dict:
                state_dict[f"{prefix}stack.{name}"] = tensor_map.load(state_dict.pop(prefix + stored))


def _model_class(row: TransformersClass) -> type[ThalwegModel]:
    config_class = CONFIGS.get(row.model_type) or getattr(transformers, row.config)
    attributes: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": row.summary,
        "config_class": config_class,
        "format": find_format(row.format),
    }
    return type(row.model, (ThalwegModel,), attributes)


MODELS: Mapping[str, type[ThalwegModel]] = {
    row.model_type: _model_class(row) for family in FAMILIES for row in family.transformers
}
"""`model_type` → class."""

globals().update({model.__name__: model for model in MODELS.values()})  # where pickle and `auto_map` look for them
