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
