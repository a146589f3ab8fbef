"""The task instructions of the paper's models, for tasks of mteb: `Instruct: {instruction}\\nQuery: {text}`.

They are data, with their source: `thalweg/assets/instructions.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

_VARIANT = re.compile(r"(HardNegatives)?(\.v\d+)?$")
"""What newer versions of a task add to its name; the instruction stays."""


@dataclass(frozen=True)
class Instructions:
    """What a model is told to do, by task.

    by_name: instruction of a task, or of all tasks whose names begin like that; by_type: of all tasks of a type;
    template: how an instruction is put before a text, with `{instruction}`.

    Where neither knows a task, mteb's own words for it are taken, then those for its kind of task.
    """

    by_name: Mapping[str, str]
    by_type: Mapping[str, str]
    template: str

    def prompt(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """What stands before a text of this task; documents have nothing before them."""
        if prompt_type is not None and prompt_type.value == "document":
            return ""
        instruction = self.instruction(task, prompt_type)
        return self.template.format(instruction=instruction) if instruction else ""

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None = None) -> str:
        """The instruction alone; "" where nobody has one."""
        name = _VARIANT.sub("", task.name)
        known = self.by_name.get(task.name) or self.by_name.get(name) or self.by_type.get(task.type)
        if known is None and name.startswith("CQADupstack"):
            known = self.by_name.get("CQADupstack")
        return known or _of_mteb(task, prompt_type)


def paper_instructions() -> Instructions:
    """Those of e5-mistral, whose procedure the models of the paper follow."""
    raw: dict[str, Any] = json.loads((files("thalweg.assets") / "instructions.json").read_text(encoding="utf-8"))
    return Instructions(raw["by_name"], raw["by_type"], raw["template"])


def _of_mteb(task: TaskMetadata, prompt_type: PromptType | None) -> str:
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = task.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get(prompt_type.value if prompt_type else "query")
    return prompt or get_abstask_prompt(task.name)
