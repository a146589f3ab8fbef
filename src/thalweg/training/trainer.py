"""sentence-transformers' trainer with checkpoints that a killed run goes on from exactly.

    checkpoint-N/
        trained.safetensors            the parameters that are trained, adapters or all, in the dtype they have
        optimizer.pt, scheduler.pt, rng_state*.pth, trainer_state.json         by transformers' trainer
        passed_R.safetensors           states that texts may start from, by process (state passing only)
        complete                       written last; without it the folder does not count

The order of batches needs no file: samplers are seeded by the recipe and the epoch, and batches that were had are
passed over.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from torch import nn
from transformers import TrainerCallback

from thalweg.errors import CheckpointError, MeasurementError
from thalweg.gradients.state_passing import StatePassing
from thalweg.integrations.sentence_transformers import StatePassingCallback
from thalweg.storage.durable import sync_file, sync_folder, write_durably
from thalweg.system.words import counted

TRAINED_FILE, COMPLETE = "trained.safetensors", "complete"

Log = dict[str, Any]


class Trainer(SentenceTransformerTrainer):
    """The trainer of a run; every step is logged, with the tokens trained on and the texts cut until then."""

    def __init__(self, *, passing: StatePassing | None, max_length: int | None, **settings: Any) -> None:
        """max_length: tokens that training texts are cut to; those of dev sets are not."""
        self._passing = passing
        self._max_length = max_length
        self._batches: Any = None
        self._n_cut = 0
        super().__init__(**settings)
        if passing is not None:
            self.add_callback(StatePassingCallback(passing))
        self.add_callback(_Epoch(lambda: self._batches))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the model card is written at the end, by `report.py`."""

    def get_data_collator(self, model: Any, *args: Any, **options: Any) -> Any:
        """The library's, which cuts."""
        collator = super().get_data_collator(model, *args, **options)
        collator.preprocess_fn = partial(model.preprocess, max_length=self._max_length)
        return collator

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights of linear layers and embeddings; decay rates, gates, norms and biases are left alone."""
        return [f"{name}.weight" for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Embedding))]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate of each step: up to the recipe's in `warmup_steps`, and from there down to 0 at the end."""
        if self.lr_scheduler is None:
            factor = partial(rate_factor, warmup=self.args.warmup_steps, total=num_training_steps)
            chosen = self.optimizer if optimizer is None else optimizer
            assert chosen is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_multi_dataset_batch_sampler(self, *args: Any, **options: Any) -> Any:
        """The library's, kept for `_Epoch`."""
        self._batches = super().get_multi_dataset_batch_sampler(*args, **options)
        return self._batches

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, whose tokens are counted."""
        counts = [0, 0]
        for name, value in inputs.items():
            counts[0] += value.numel() if name.endswith("_input_ids") else 0
            counts[1] += value if name.endswith("_n_cut") else 0
        n_tokens, n_cut = self.accelerator.reduce(torch.tensor(counts, device=self.args.device)).tolist()
        self.state.num_input_tokens_seen += n_tokens
        self._n_cut += n_cut
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: Log, start_time: float | None = None) -> None:
        """Raises:
        MeasurementError: the loss is not finite; there is nothing to be gained from going on.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                step = self.state.global_step
                raise MeasurementError(
                    f"the loss is {logs['loss']} in step {step}; "
                    + (
                        f"start again with a smaller learning rate: --overwrite --set learning_rate="
                        f"{self.args.learning_rate / 4:g}"
                        if step > 1
                        else "nothing has been trained yet, so the model's vectors or the temperature are to blame"
                    )
                )
            before = next((entry["cut"] for entry in reversed(self.state.log_history) if "cut" in entry), 0)
            logs = {**logs, "tokens": self.state.num_input_tokens_seen, "cut": before + self._n_cut}
            self._n_cut = 0
        super().log(logs, start_time)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self._trained().items()}, folder / TRAINED_FILE)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        stored, trained = load_file(Path(checkpoint_path) / TRAINED_FILE), self._trained()
        if stored.keys() != trained.keys():
            raise CheckpointError(f"{checkpoint_path} holds {counted(len(stored), 'parameter')}, not those of this run")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])
        if self._passing is not None:
            path = Path(checkpoint_path) / f"passed_{self.args.process_index}.safetensors"
            states = load_file(path, device=str(self.args.device)) if path.is_file() else {}
            first: Any = self.model[0]
            self._passing.restore(first.model, [states[str(number)] for number in range(len(states))])

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # what is left of one that was not completed
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        if self._passing is not None and len(self._passing):
            states = {str(number): tensor.contiguous() for number, tensor in enumerate(self._passing.tensors())}
            save_file(states, folder / f"passed_{self.args.process_index}.safetensors")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in folder.iterdir():
                sync_file(path)
            sync_folder(folder)
            write_durably(folder / COMPLETE, lambda stream: None)
            _drop_others(folder)
        self.accelerator.wait_for_everyone()


class _Epoch(TrainerCallback):
    """Tells the sampler its epoch: where batches are shared out, accelerate does not pass it on in a resumed epoch."""

    def __init__(self, batches: Callable[[], Any]) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._batches().set_epoch(int(state.epoch or 0))


def rate_factor(step: int, *, warmup: float, total: int) -> float:
    """The share of the learning rate that a step (from 0) is made with. No step is lost at a rate of 0."""
    return (step + 1) / (warmup + 1) if step < warmup else max(0.0, (total - step) / (total - warmup))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _drop_others(checkpoint: Path) -> None:
    for path in checkpoint.parent.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)
