"""Vectors with gradients: what training needs that inference does not keep.

| file | reason |
|---|---|
| `forward.py` | whole texts in one run, all activations kept |
| `steps.py` | `Checkpointing`; texts cut into steps, and which of them a gradient reaches |
| `batch.py` | one step, run the same way every time: autocast, dropout |
| `checkpointed.py` | texts of any length as one operation of autograd that keeps states between chunks |
| `state_passing.py` | state passing: texts that start where others ended |
| `embed.py` | the one call that a training framework makes |
| `memory_plan.py` | the memory plan of a training step |
| `lora.py` | adapters of peft on every linear layer |
| `qlora.py` | frozen weights in 4 bits |
"""

from thalweg.gradients.checkpointed import Embedded, embed_checkpointed
from thalweg.gradients.lora import add_lora, lora_targets, merge_lora
from thalweg.gradients.memory_plan import TrainingMemoryPlan, plan_training_memory
from thalweg.gradients.state_passing import StatePassing
from thalweg.gradients.steps import Checkpointing

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
