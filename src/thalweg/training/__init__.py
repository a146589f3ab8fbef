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

__all__ = [
    "Checkpointing",
    "Embedded",
    "StatePassing",
    "TrainingMemoryPlan",
    "add_lora",
    "embed_checkpointed",
    "lora_targets",
    "merge_lora",
    "plan_training_memory",
]
