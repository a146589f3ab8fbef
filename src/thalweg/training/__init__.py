"""Training: what differs from inference, where nothing has to be kept for gradients.

| file | reason |
|---|---|
| `forward.py` | whole texts in one run, all activations kept |
| `steps.py` | `Checkpointing`; texts cut into steps, and which of them a gradient reaches |
| `batch.py` | one step, run the same way every time: autocast, dropout |
| `checkpointed.py` | texts of any length as one operation of autograd that keeps states between chunks |
| `passing.py` | state passing: texts that start where others ended |
| `embedding.py` | the one call that a training framework makes |
| `memory.py` | the memory plan of a training step |
| `lora.py` | adapters of peft on every linear layer |

`thalweg train`; what imports sentence-transformers is imported when it is used:

| file | reason |
|---|---|
| `recipes.py` | `Recipe`: all that decides a run but model and data; the recipes by name |
| `run.py` | `train`: from a model and data to a model folder |
| `workspace.py` | the folder of a run that goes on, and what was asked for |
| `data/` | files, hub data sets and named sets to rows |
| `objectives.py` | the losses, and the one for a teacher |
| `teacher.py` | a teacher's vectors, kept on the disk |
| `trainer.py` | the trainer, and checkpoints that a killed run goes on from exactly |
| `quantization.py` | frozen weights in 4 bits |
| `dev.py` | scores while a run goes on |
| `follow.py` | log and TensorBoard |
| `report.py` | model card, recipe and curves beside the model |
| `extras.py` | the optional packages, or the pip command |
"""

from thalweg.training.checkpointed import Embedded, embed_checkpointed
from thalweg.training.lora import add_lora, lora_targets, merge_lora
from thalweg.training.memory import TrainingMemoryPlan, plan_training_memory
from thalweg.training.passing import StatePassing
from thalweg.training.steps import Checkpointing

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
