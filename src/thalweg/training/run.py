"""A training run: from a model and data to a model folder."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, set_seed

import thalweg
from thalweg.checkpoints.formats import format_to_write
from thalweg.embedder.devices import check_device
from thalweg.errors import InvalidInputError, MeasurementError
from thalweg.gradients.lora import add_lora, merge_lora
from thalweg.gradients.qlora import quantize_4bit
from thalweg.integrations.sentence_transformers import from_embedder
from thalweg.storage.work_folder import publish_folder
from thalweg.system.memory_errors import one_line, out_of_memory
from thalweg.system.words import counted
from thalweg.training.data import load_training_data
from thalweg.training.dev_scores import Evaluators, as_one, dev_evaluators
from thalweg.training.extras import require_4bit
from thalweg.training.losses import make_loss
from thalweg.training.progress_log import EVENTS, LOG_FILE, Follow, Status, entries, event_callbacks
from thalweg.training.recipes import RECIPE_FILE, Recipe
from thalweg.training.report import PLOT_FILE, Facts, edit_card, write_plot
from thalweg.training.teacher import TeacherCache, TeacherVectors
from thalweg.training.trainer import Trainer, last_checkpoint
from thalweg.training.workspace import Mode, check_same, digest, held, run_folder

if TYPE_CHECKING:
    from thalweg.embedder.embedder import Embedder

Tell = Callable[[Status], None]

FEW_STEPS, LEAST_BATCH = 20, 16
"""Below so many steps a smaller batch is advised, but not one so small that it has hardly any negatives."""


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    first: this is the first of the processes; first_step: the step it was resumed from, or 0; tokens, cut: trained on,
    and texts cut to the maximum length, over the whole run; scores: on the dev sets, at the end; metric: what they are;
    counts: rows of each data set, read, kept and left out.
    """

    out: Path
    first: bool = True
    first_step: int = 0
    steps: int = 0
    tokens: int = 0
    cut: int = 0
    loss: float | None = None
    seconds: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    metric: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    nothing_to_do: bool = False


def train(
    model: str | Path | None,
    data: Sequence[str],
    out: str | Path,
    recipe: Recipe,
    *,
    dev: Sequence[str | Path] = (),
    revision: str | None = None,
    device: str | None = None,
    mode: Mode = "new",
    on_status: Tell = lambda status: None,
) -> Summary:
    """Train a model and write it to a folder that thalweg and sentence-transformers open.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments: each batch is shared out
    among them, and its negatives are those of all.

    Args:
        model: as for `thalweg.load`.
        data: see `thalweg.training.data.load_training_data`.
        out: appears whole at the end; until then all is in `OUT.run` (`workspace.py`).
        dev: files to score the model on while it is trained (`dev_scores.py`).
        device: "cpu", "cuda" or "mps"; None takes CUDA where there is one, else the CPU.
        mode: "new" wants neither `out` nor `OUT.run` to be there; "resume" goes on from the last checkpoint, or begins;
            "overwrite" replaces what is there.

    Raises:
        InvalidInputError: settings that do not fit each other, the model or the data; a run that exists or differs.
        CheckpointError, CorpusError: the model, the data or a dev set cannot be read.
        MeasurementError: the loss is no longer finite.
        MissingExtraError: bitsandbytes is wanted and not installed.
    """
    out = Path(out)
    if not out.name:
        raise InvalidInputError(f"{str(out)!r} has no name; name a folder to write")
    if mode == "resume" and out.exists() and not run_folder(out).exists():
        return Summary(out, nothing_to_do=True)
    if recipe.objective == "distill" and recipe.teacher is None:
        raise InvalidInputError("distill needs a teacher: --set teacher=all-MiniLM-L6-v2")
    evaluators = dev_evaluators([Path(path) for path in dev])
    arguments = _arguments(recipe, run_folder(out), device, has_dev=bool(evaluators))
    first = arguments.process_index == 0
    with held(out, mode) if first else nullcontext(run_folder(out)) as folder:
        PartialState().wait_for_everyone()
        return _Run(recipe, data, out, folder, arguments, evaluators, on_status if first else lambda _: None).go(
            model, revision, [str(path) for path in dev]
        )


class _Run:
    """What the parts of a run share."""

    def __init__(
        self,
        recipe: Recipe,
        data: Sequence[str],
        out: Path,
        folder: Path,
        arguments: SentenceTransformerTrainingArguments,
        evaluators: Evaluators,
        tell: Tell,
    ) -> None:
        self.recipe = recipe
        self.data = list(data)
        self.out = out
        self.folder = folder
        self.arguments = arguments
        self.evaluators = evaluators
        self.tell = tell
        self.began = time.monotonic()

    def go(self, model: str | Path | None, revision: str | None, dev: list[str]) -> Summary:
        """All of it."""
        arguments = self.arguments
        embedder = self._load(model, revision)
        recipe = self.recipe
        loaded = load_training_data(
            self.data, seed=recipe.seed, max_negatives=recipe.negatives, instructions=recipe.instructions
        )
        rows = DatasetDict(loaded.datasets)
        recipe = self.recipe = self._fitted(rows)
        arguments.warmup_steps = recipe.warmup_steps
        if arguments.process_index == 0:
            asked = {
                "model": embedder.fingerprint,
                "data": {name: digest(part) for name, part in rows.items()},
                "dev": dev,
                "processes": arguments.world_size,
                "recipe": recipe.to_json(),
            }
            check_same(self.folder, asked)
        instructions = {name: text for name, text in loaded.prompts.items() if text}
        arguments.prompts = {name: {"anchor": text} for name, text in instructions.items()}
        embedder.embedding_config = _tuned(embedder, instructions)
        teacher = None
        if recipe.objective == "distill":
            rows, teacher = self._taught(rows)
        trainer = self._trainer(_student(embedder, recipe), rows, teacher)
        checkpoint = last_checkpoint(self.folder)
        self._train(trainer, checkpoint)
        log = entries(trainer.state.log_history, self.evaluators)
        base = Path(embedder.name).resolve().name if Path(embedder.name).exists() else embedder.name
        facts = Facts(base, recipe, loaded.manifest(), instructions, log, arguments.world_size)
        if arguments.process_index == 0:
            self.tell(Status("write"))
            self._write(embedder, facts, model, revision)
        PartialState().wait_for_everyone()
        last: dict[str, Any] = facts.steps[-1] if facts.steps else {}
        return Summary(
            self.out,
            first=arguments.process_index == 0,
            first_step=0 if checkpoint is None else int(checkpoint.name.partition("-")[2]),
            steps=trainer.state.global_step,
            tokens=last.get("tokens", 0),
            cut=last.get("cut", 0),
            loss=last.get("loss"),
            seconds=time.monotonic() - self.began,
            scores=facts.final_scores,
            metric=facts.metric,
            counts=loaded.counts,
        )

    def _load(self, model: str | Path | None, revision: str | None) -> Embedder:
        """The model, on the device, whose weights are float32 where they are trained themselves."""
        embedder = thalweg.load(
            model,
            revision=revision,
            device=str(self.arguments.device),
            dtype=None if self.recipe.lora_rank else "float32",
        )
        writer = format_to_write(embedder.model).write_config
        assert writer is not None
        writer(embedder.config)  # a model that cannot be written should say so now
        if self.recipe.quantize_4bit:
            require_4bit(self.arguments.device.type)
        return embedder

    def _fitted(self, rows: Mapping[str, Dataset]) -> Recipe:
        """The recipe for this data: a run that is over before its warm-up warms up for a tenth of its steps."""
        recipe = self.recipe
        n_steps = _n_steps(rows, recipe, self.arguments.world_size)
        words = []
        if recipe.warmup_steps >= n_steps:
            recipe = replace(recipe, warmup_steps=n_steps // 10)
            words.append(
                f"the run has {counted(n_steps, 'step')}, fewer than the warm-up of "
                f"{counted(self.recipe.warmup_steps, 'step')}, so warmup_steps={recipe.warmup_steps} is used"
            )
        n_rows = max(map(len, rows.values()))
        batch = max(LEAST_BATCH, 2 ** int(math.log2(max(1, n_rows // FEW_STEPS))))
        if n_steps < FEW_STEPS and batch < min(recipe.batch_size, n_rows):
            words.append(
                f"{counted(n_steps, 'step')} of up to {counted(min(recipe.batch_size, n_rows), 'row')} "
                f"{'teaches' if n_steps == 1 else 'teach'} a model little: --set batch_size={batch} makes more of them"
            )
        if words:
            self.tell(Status("train", notice="; ".join(words)))
        return recipe

    def _taught(self, rows: DatasetDict) -> tuple[DatasetDict, TeacherVectors]:
        """The rows with labels: of each text its row among the teacher's vectors."""
        assert self.recipe.teacher is not None
        texts: dict[str, int] = {}
        for part in rows.values():
            for column in part.column_names:
                for text in part[column]:
                    texts.setdefault(text, len(texts))
        with PartialState().main_process_first():
            cache = TeacherCache(self.folder / "teacher", self.recipe.teacher)
        cache.fill(
            list(texts),
            str(self.arguments.device),
            process=self.arguments.process_index,
            n_processes=self.arguments.world_size,
            on_texts=lambda done, total: self.tell(Status("teacher", done, total)),
        )
        PartialState().wait_for_everyone()
        labelled = {}
        for name, part in rows.items():
            columns = [[texts[text] for text in part[column]] for column in part.column_names]
            labelled[name] = part.add_column("label", [list(row) for row in zip(*columns, strict=True)])
        return DatasetDict(labelled), cache.vectors(list(texts))

    def _trainer(self, student: SentenceTransformer, rows: DatasetDict, teacher: TeacherVectors | None) -> Trainer:
        trainer = Trainer(
            passing=student[0].state_passing,  # type: ignore[arg-type]
            max_length=self.recipe.max_length,
            model=student,
            args=self.arguments,
            train_dataset=rows,
            loss=make_loss(student, self.recipe, self.arguments.world_size, teacher),
            evaluator=as_one(self.evaluators) if self.evaluators else None,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self, trainer: Trainer, checkpoint: Path | None) -> None:
        """From the checkpoint, or the beginning, to the end, with scores before and after."""
        self.arguments.eval_on_start = bool(self.evaluators) and checkpoint is None
        if self.arguments.process_index == 0:
            trainer.add_callback(Follow(self.folder, self.evaluators, self.tell))
            first_step = 0 if checkpoint is None else int(checkpoint.name.partition("-")[2]) + 1
            for callback in event_callbacks(self.folder, first_step):
                trainer.add_callback(callback)
        with _cuts_counted():
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise MeasurementError(
                    f"there is not enough memory for step {trainer.state.global_step + 1} ({one_line(error)}); lower "
                    f"mini_batch_tokens={self.recipe.mini_batch_tokens} with gradient_cache=true, or set "
                    "vertical_chunk_size=256, which keeps states instead of activations"
                ) from error
        scored = [entry["step"] for entry in entries(trainer.state.log_history, self.evaluators) if "dev" in entry]
        if self.evaluators and trainer.state.global_step not in scored:
            trainer.evaluate()

    def _write(self, embedder: Embedder, facts: Facts, model: str | Path | None, revision: str | None) -> None:
        """The model without adapters and all that is said of it, as a folder that takes its name at once."""
        if self.recipe.quantize_4bit:
            embedder = self._unquantized(embedder, model, revision)
        if self.recipe.lora_rank:
            merge_lora(embedder.model)
        fresh = self.folder / "model"
        if fresh.exists():
            shutil.rmtree(fresh)
        embedder.save(fresh, edit_card=lambda card: edit_card(card, self.out.name, facts))
        (fresh / RECIPE_FILE).write_text(facts.recipe_json(), encoding="utf-8")
        write_plot(fresh / PLOT_FILE, facts)
        shutil.copy(self.folder / LOG_FILE, fresh)
        if (self.folder / EVENTS).exists():
            shutil.copytree(self.folder / EVENTS, fresh / EVENTS)
        publish_folder(fresh, self.out, self.folder)

    def _unquantized(self, trained: Embedder, model: str | Path | None, revision: str | None) -> Embedder:
        """The model as it was, with the adapters that were trained on its weights in 4 bits."""
        whole = self._load(model, revision)
        whole.embedding_config = trained.embedding_config
        _add_adapters(whole.model, self.recipe)
        adapters = {name: value for name, value in trained.model.state_dict().items() if ".lora_" in name}
        whole.model.load_state_dict(adapters, strict=False)
        return whole


def _arguments(
    recipe: Recipe, folder: Path, device: str | None, *, has_dev: bool
) -> SentenceTransformerTrainingArguments:
    """The recipe in the words of the trainer.

    `split_batches`: the samplers make the batches of all processes together, so that what is in a batch does not depend
    on how many they are.

    Raises:
        InvalidInputError: a device that cannot be had, or a batch that cannot be shared out evenly.
    """
    if device not in (None, "cpu", "cuda", "mps"):
        raise InvalidInputError(f"device must be cpu, cuda or mps, got {device!r}; CUDA_VISIBLE_DEVICES chooses a GPU")
    if device is not None:
        check_device(device)
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    has_bfloat16 = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and several else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        accelerator_config={"split_batches": True},
        num_train_epochs=recipe.epochs,
        max_steps=-1 if recipe.max_steps is None else recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        dataloader_drop_last=several,
        dataloader_pin_memory=not on_cpu,
        batch_sampler="no_duplicates" if recipe.no_duplicates else "batch_sampler",
        multi_dataset_batch_sampler="proportional",
        optim="adamw_torch",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="linear",
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bfloat16" or (recipe.precision == "auto" and has_bfloat16),
        save_strategy="steps",
        save_steps=recipe.save_every,
        eval_strategy="steps" if has_dev else "no",
        eval_steps=recipe.dev_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=recipe.seed,
    )
    if device not in (None, arguments.device.type):
        raise InvalidInputError(f"device {device!r} cannot be used here; torch finds {arguments.device.type!r}")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for several processes
    if recipe.batch_size % arguments.world_size:
        raise InvalidInputError(
            f"batch_size={recipe.batch_size} cannot be shared out among {arguments.world_size} processes; it must be a "
            "multiple of their number"
        )
    return arguments


def _student(embedder: Embedder, recipe: Recipe) -> SentenceTransformer:
    """The model as the trainer takes it, with adapters if the recipe wants them."""
    set_seed(recipe.seed)
    student = from_embedder(embedder, checkpointing=recipe.checkpointing(), state_passing=recipe.passing())
    if recipe.quantize_4bit:
        quantize_4bit(embedder.model)
    if recipe.lora_rank:
        _add_adapters(embedder.model, recipe)
    return student


def _add_adapters(model: torch.nn.Module, recipe: Recipe) -> None:
    """Adapters in float32, whatever the weights are in."""
    add_lora(model, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _tuned(embedder: Embedder, instructions: Mapping[str, str]) -> Any:
    """How the trained model makes vectors: as before, and after the instruction of its queries if all had the same."""
    config = replace(embedder.embedding_config, untuned=False)
    different = set(instructions.values())
    if len(different) == 1 and "query" not in config.prompts:
        config = replace(config, prompts={**config.prompts, "query": different.pop()})
    return config


def _n_steps(rows: Mapping[str, Dataset], recipe: Recipe, n_processes: int) -> int:
    """Steps of the whole run, or about as many: rows that would come twice in a batch may need further ones.

    Raises:
        InvalidInputError: a data set with fewer rows than a batch that is shared out. Several processes drop what does
            not fill a batch; nothing should be dropped whole without a word.
    """
    n_steps = 0
    for name, part in rows.items():
        if n_processes > 1 and len(part) < recipe.batch_size:
            fits = len(part) // n_processes * n_processes
            raise InvalidInputError(
                f"data set {name!r} has {counted(len(part), 'row')}, but a batch of {n_processes} processes takes "
                f"{recipe.batch_size:,}; "
                + (f"lower it with --set batch_size={fits}, or " if fits else "")
                + "leave the data set out"
            )
        n_steps += len(part) // recipe.batch_size if n_processes > 1 else -(-len(part) // recipe.batch_size)
    return recipe.epochs * n_steps if recipe.max_steps is None else recipe.max_steps


@contextmanager
def _cuts_counted() -> Iterator[None]:
    """Without a warning for every batch with cut texts: the run's log counts them."""
    log = logging.getLogger("thalweg")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
