"""What `--sections`, `--section-mode`, `--look-ahead` and `--every` ask for."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from thalweg.embedder.sections import Sections

UNITS = ("tokens", "paragraph", "sentence", "heading")

_SECTIONS = re.compile(rf"(?:(?P<every>\d{{1,9}}):)?(?P<by>{'|'.join(UNITS)})|(?P<tokens>\d{{1,9}})")


class SectionModeName(str, Enum):
    """What the vector of a section stands for."""

    mean = "mean"
    prefix = "prefix"
    isolated = "isolated"


def parse_sections(sections: str | None, mode: SectionModeName | None, look_ahead: int) -> Sections | None:
    """The sections that the options ask for, None for one vector a document.

    Raises:
        typer.BadParameter: no number and no unit, or options that do not fit together.
    """
    if sections is None:
        if mode is not None or look_ahead:
            option = "--section-mode" if mode is not None else "--look-ahead"
            raise typer.BadParameter(f"{option} needs --sections: say what a section is")
        return None
    found = _SECTIONS.fullmatch(sections)
    every = found and (found["every"] or found["tokens"])
    if found is None or (every is not None and int(every) < 1):
        raise typer.BadParameter(
            f"--sections {sections!r} is neither a number of tokens (512) nor a unit of text: "
            f"{', '.join(UNITS[1:])}, or a number of them (5:sentence)"
        )
    if look_ahead and mode is SectionModeName.isolated:
        raise typer.BadParameter("--look-ahead and --section-mode isolated exclude each other")
    from thalweg.embedder.sections import Sections

    by = found["by"] or "tokens"
    return Sections(by, int(every) if every else None, mode.value if mode else None, look_ahead)  # type: ignore[arg-type]
