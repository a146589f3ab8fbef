"""How texts are cut into sections, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from thalweg.checks import one_of, whole_number
from thalweg.embedder.boundaries import Boundaries, By, from_callable, make_boundaries
from thalweg.embedder.results import Embedding
from thalweg.engine.sections import TokenSections
from thalweg.errors import InvalidInputError, TokenizationError
from thalweg.pooling.vectors import FloatArray

Mode: TypeAlias = Literal["mean", "prefix", "isolated"]
Unit: TypeAlias = Literal["tokens", "paragraph", "sentence", "heading"]

TOKENS = 512
"""Tokens of a section where nothing is said."""


@dataclass(frozen=True)
class Sections:
    """How documents are cut into sections, each with a vector of its own.

    A token that lies across a boundary belongs to the section in which it begins, white space at its front not counted.
    Where a section has no token that begins in it, it becomes part of the one before (at the start of a text, of the
    one after).

    Args:
        by: "tokens"; "paragraph", "sentence" or "heading" (by rules for the text alone, found as it arrives); a
            function that takes a whole text and returns the characters at which sections end; or those characters
            themselves, ascending, of one text.
        every: so many of these units make a section; None: 512 tokens, or one.
        mode: "mean": the mean over the section's own tokens, computed with everything before it in view. "prefix": the
            vector of the text up to the section's end, as if it ended there. "isolated": the vector of the section as
            a text of its own. None: "mean" for models with mean pooling, "prefix" for those with last-token pooling.
        look_ahead: tokens after the section that count as well (fewer at the text's end); not in mode "isolated".

    Raises:
        InvalidInputError: an argument that cannot be.
    """

    by: Unit | Callable[[str], Iterable[int]] | Iterable[int] = "tokens"
    every: int | None = None
    mode: Mode | None = None
    look_ahead: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            one_of("by", self.by, get_args(Unit))
        elif not callable(self.by) and not isinstance(self.by, Iterable):
            raise InvalidInputError(
                f"by must be one of {', '.join(get_args(Unit))}, a function or characters, got {self.by!r:.80}"
            )
        if self.every is not None:
            whole_number("every", self.every, 1)
        if self.mode is not None:
            one_of("mode", self.mode, get_args(Mode))
        whole_number("look_ahead", self.look_ahead, 0)
        if self.look_ahead and self.mode == "isolated":
            raise InvalidInputError(
                f"look_ahead={self.look_ahead} is not possible in mode 'isolated', where a section sees nothing but "
                "itself; leave it out or choose another mode"
            )

    @property
    def n_units(self) -> int:
        """`every`, or what stands for None."""
        if self.every is not None:
            return self.every
        return TOKENS if self.by == "tokens" else 1

    def plain(self) -> dict[str, Any]:
        """As a file holds it; of a growing text."""
        return {"by": self.by, "every": self.every, "mode": self.mode}

    @property
    def of_one_text(self) -> bool:
        """Whether the boundaries are those of one text."""
        return not isinstance(self.by, str) and not callable(self.by)

    def in_tokens(self) -> TokenSections:
        """What the engine is told; not in mode "isolated", where it sees no sections."""
        assert self.mode != "isolated"
        return TokenSections(self.n_units if self.by == "tokens" else None, self.mode, self.look_ahead)

    def boundaries(self, text: Any) -> Boundaries:
        """Where the sections of a text end; not by tokens.

        Raises:
            InvalidInputError: a function needs a whole text, or returns what is no boundary.
        """
        if not callable(self.by):
            by: By | Iterable[int] = self.by  # type: ignore[assignment]
            return make_boundaries(by, self.n_units)
        return from_callable(self.by, whole_text(text), self.n_units)


def check_of_growing_text(sections: Sections) -> None:
    """Raises InvalidInputError for sections that cannot be told while a text grows."""
    if not isinstance(sections, Sections):
        raise InvalidInputError(f"sections must be thalweg.Sections(…), got {sections!r:.80}")
    if not isinstance(sections.by, str):
        raise InvalidInputError(
            f"a session's text grows, so that nobody can say where in it sections end: by must be one of "
            f"{', '.join(get_args(Unit))}, got {sections.by!r:.80}"
        )
    if sections.mode == "isolated":
        raise InvalidInputError(
            "mode='isolated' is not possible in a session, whose sections see what came before: use 'mean' or "
            "'prefix', or encode the text of each section"
        )
    if sections.look_ahead:
        raise InvalidInputError(f"look_ahead={sections.look_ahead} is not possible in a session; leave it out")


def whole_text(text: Any) -> str:
    """The text that a function finds boundaries in.

    Raises:
        InvalidInputError: it comes in pieces.
    """
    if isinstance(text, str):
        return text
    if not isinstance(text, bytes | bytearray | memoryview):
        raise InvalidInputError(
            f"by=<function> needs a whole text (str or bytes), got {type(text).__name__}: read it first, or cut it by "
            "paragraph, sentence, heading or tokens"
        )
    try:
        return bytes(text).decode()
    except UnicodeDecodeError as error:
        raise TokenizationError(f"byte {error.start} is not valid UTF-8: {error.reason}") from error


def chosen_sections(section_size: int | None, sections: Sections | None) -> Sections | None:
    """What was asked for by one of these arguments, or None.

    Raises:
        InvalidInputError: both were given, or one that cannot be.
    """
    if section_size is not None:
        if sections is not None:
            raise InvalidInputError(f"section_size={section_size!r} and sections={sections!r:.80} exclude each other")
        return Sections(every=whole_number("section_size", section_size, 1))
    if sections is not None and not isinstance(sections, Sections):
        raise InvalidInputError(f"sections must be thalweg.Sections(…), got {sections!r:.80}")
    return sections


def running_totals(found: Iterator[Embedding]) -> Iterator[tuple[int, FloatArray]]:
    """The tokens up to the end of each section of a text, and its vector (d,)."""
    tokens = 0
    for embedding in found:
        tokens += embedding.n_tokens
        yield tokens, embedding.vector
