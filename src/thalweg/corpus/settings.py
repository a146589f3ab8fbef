"""What a user can say about a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias

from thalweg.assets import MODEL_NAME, model_folder
from thalweg.checks import one_of, whole_number
from thalweg.corpus.parts import Parts
from thalweg.corpus.records import Columns
from thalweg.corpus.writers import check_output, parts_path
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.sections import Sections, chosen_sections
from thalweg.engine.sections import default_mode
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.pooling.vectors import PRECISIONS, Precision
from thalweg.storage.durable import check_no_link
from thalweg.storage.lock import check_not_held
from thalweg.version import __version__

Mode: TypeAlias = Literal["new", "resume", "overwrite"]
"""What to do about an output or an unfinished run that is already there."""


STATE_EVERY = 200_000
"""Tokens of a long document that a crash may cost."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    Args:
        model, revision: as given to `thalweg.load`, so that `search` can load the same; a folder as an absolute path.
        prompt, prompt_name: put before every document; neither: the model's prompt for documents, if it has one.
        section_size, sections: how documents are cut, as in `Embedder.encode_stream`, but neither by a function nor by
            given characters; neither makes one vector a document.
        precision: of the stored vectors. The ranges of int8 and uint8 are those of the whole run.
        truncate_dim, normalize, max_length: as `Embedder.encode_stream`.
        columns: of tables.
        with_text: store the text of each vector.
        schedule: bounds of `Embedder.schedule`; they change speed and memory only.
        share_prefixes: as `Embedder.encode_stream`; it changes speed and memory only.
        save_every: seconds of work that a crash may cost.
        state_every: tokens after which a long document saves where it stands; 0: never. With isolated sections or
            look_ahead it never does.
        strict: stop at the first document that cannot be read.
    """

    model: str | None = None
    revision: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    section_size: int | None = None
    sections: Sections | None = None
    precision: Precision = "float32"
    truncate_dim: int | None = None
    normalize: bool | None = None
    max_length: int | None = None
    columns: Columns = field(default_factory=Columns)
    with_text: bool = True
    schedule: Mapping[str, Any] = field(default_factory=dict)
    share_prefixes: bool = False
    save_every: float = 5.0
    state_every: int = STATE_EVERY
    strict: bool = False

    def __post_init__(self) -> None:
        whole_number("state_every", self.state_every, 0)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("truncate_dim", "max_length"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        if isinstance(self.save_every, bool) or not isinstance(self.save_every, Real) or not self.save_every >= 0:
            raise InvalidInputError(f"save_every must be a number of seconds, got {self.save_every!r:.80}")
        if self.prompt is not None and self.prompt_name is not None:
            raise InvalidInputError("prompt and prompt_name exclude each other")
        if self.cut is not None and not isinstance(self.cut.by, str):
            raise InvalidInputError(
                f"a corpus is cut by tokens, paragraph, sentence or heading, not by {self.cut.by!r:.80}: it could not "
                "be told whether a resumed run does the same"
            )

    @property
    def cut(self) -> Sections | None:
        """How documents are cut; None makes one vector a document."""
        return chosen_sections(self.section_size, self.sections)

    @property
    def section_tokens(self) -> int | None:
        """Tokens of a section, None where it is none or of another unit."""
        return self.cut.n_units if self.cut is not None and self.cut.by == "tokens" else None

    def _section_identity(self, embedder: Embedder) -> dict[str, Any]:
        """What decides how documents are cut; what is as it is by itself is None."""
        cut = self.cut
        if cut is None:
            return {"sections": None, "section-mode": None, "look-ahead": None}
        mode = None if cut.mode == default_mode(embedder.pooling) else cut.mode
        name = self.section_tokens or f"{cut.n_units}:{cut.by}"
        return {"sections": name, "section-mode": mode, "look-ahead": cut.look_ahead or None}

    def model_named(self, embedder: Embedder) -> tuple[str, str | None]:
        """A name by which the model is found from anywhere, and its revision; for the shipped one, of which thalweg."""
        name = embedder.name if self.model is None else self.model
        if embedder.folder == model_folder():
            return MODEL_NAME, f"thalweg {__version__}"
        return (str(Path(name).resolve()), None) if Path(name).exists() else (name, self.revision)

    def document_prompt(self, embedder: Embedder) -> str:
        """The text that is put before every document."""
        name = self.prompt_name
        if self.prompt is None and name is None:
            name = embedder.prompt_name_of("document")
        return embedder.prompt(self.prompt, name)

    def dimension(self, embedder: Embedder) -> int:
        """Numbers of a vector."""
        return embedder.dimension if self.truncate_dim is None else self.truncate_dim

    def normalized(self, embedder: Embedder) -> bool:
        """Whether vectors get length 1."""
        return embedder.embedding_config.normalize if self.normalize is None else self.normalize

    def identity(self, embedder: Embedder) -> dict[str, Any]:
        """All that decides what is in the output: a resumed run must agree in it."""
        return {
            "model": embedder.fingerprint,
            "dtype": str(next(embedder.model.parameters()).dtype).removeprefix("torch."),
            "quantize": embedder.quantization,
            "prompt": self.document_prompt(embedder),
            **self._section_identity(embedder),
            "precision": self.precision,
            "truncate-dim": self.truncate_dim,
            "normalize": self.normalized(embedder),
            "max-length": self.max_length,
            "text-column": self.columns.text,
            "id-column": self.columns.id,
            "text": self.with_text,
        }


def check_free(out: Path, mode: Mode) -> None:
    """Look before anything is loaded whether a run may write to `out`.

    Raises:
        CorpusError: no known format; a link; another run writes to it now; or something is there and neither resuming
            nor overwriting was asked for.
    """
    check_output(out)
    check_no_link(out)
    check_not_held(parts_path(out))
    if mode != "new":
        return
    if Parts.exist(parts_path(out)):
        raise CorpusError(
            f"{parts_path(out)} holds an unfinished run: continue it with --resume, or start over with --overwrite"
        )
    if out.exists():
        raise CorpusError(f"{out} exists; replace it with --overwrite")
