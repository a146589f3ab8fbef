"""Training: `thalweg train`, and the names of `thalweg.gradients` that users call.

What imports sentence-transformers is imported when it is used.

| file | reason |
|---|---|
| `recipes.py` | `Recipe`: all that decides a run but model and data; the recipes by name |
| `run.py` | `train`: from a model and data to a model folder |
| `workspace.py` | the folder of a run that goes on, and what was asked for |
| `data/` | files, hub data sets and named sets to rows |
| `losses.py` | the losses, and the one for a teacher |
| `teacher.py` | a teacher's vectors, kept on the disk |
| `trainer.py` | the trainer, and checkpoints that a killed run goes on from exactly |
| `dev_scores.py` | scores while a run goes on |
| `progress_log.py` | log and TensorBoard |
| `report.py` | model card, recipe and curves beside the model |
| `extras.py` | the optional packages, or the pip command |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.gradients import (
    Checkpointing,
    Embedded,
    StatePassing,
    TrainingMemoryPlan,
    add_lora,
    embed_checkpointed,
    lora_targets,
    merge_lora,
    plan_training_memory,
)
from thalweg.lazy_names import lazy_names
from thalweg.training.extras import require_extra
from thalweg.training.recipes import Recipe, distill, e5_mistral, tiny

if TYPE_CHECKING:
    from thalweg.training.run import train

__all__ = [
    "Checkpointing",
    "Embedded",
    "Recipe",
    "StatePassing",
    "TrainingMemoryPlan",
    "add_lora",
    "distill",
    "e5_mistral",
    "embed_checkpointed",
    "lora_targets",
    "merge_lora",
    "plan_training_memory",
    "tiny",
    "train",
]

__getattr__ = lazy_names(__name__, {"train": ".run"}, require_extra)
