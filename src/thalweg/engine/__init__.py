"""The engine: documents of any length through a recurrent model, a packed step at a time."""

from thalweg.engine.engine import Engine
from thalweg.engine.memory_plan import MemoryPlan, plan_memory
from thalweg.engine.results import DocumentState, Failure, Pooled, Progress
from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Answer, Ids, TokenArray, TokenSource

__all__ = [
    "Answer",
    "DocumentState",
    "Engine",
    "Failure",
    "Ids",
    "MemoryPlan",
    "Pooled",
    "Progress",
    "Schedule",
    "TokenArray",
    "TokenSections",
    "TokenSource",
    "plan_memory",
]
