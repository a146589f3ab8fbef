"""Files to vectors in one call: what `thalweg embed` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from thalweg.checks import lasting_name
from thalweg.corpus.arguments import PathName, as_names, check_loading
from thalweg.corpus.outputs import discover
from thalweg.corpus.records import Columns
from thalweg.corpus.report import Status, Summary
from thalweg.corpus.run import embed_files
from thalweg.corpus.settings import STATE_EVERY, Mode, Settings, check_free
from thalweg.corpus.writers import companions
from thalweg.embedder.dtypes import Dtype
from thalweg.embedder.embedder import Embedder
from thalweg.embedder.loading import load
from thalweg.embedder.sections import Sections
from thalweg.errors import InvalidInputError
from thalweg.inputs.delimited_rows import check_delimiter
from thalweg.inputs.discover import Reading
from thalweg.inputs.encodings import check_encoding
from thalweg.inputs.formats import LINES, NAMES
from thalweg.models.quantized import Quantization
from thalweg.pooling.vectors import Precision
from thalweg.tokenization.backend import SpecialTokens


def embed_corpus(
    inputs: PathName | Sequence[PathName],
    out: PathName,
    *,
    model: str | Path | Embedder | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
    quantize: Quantization | None = None,
    special_tokens: SpecialTokens | None = None,
    max_uncut_chars: int | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    lines: bool = False,
    format: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    globs: Sequence[str] = (),
    section_size: int | None = None,
    sections: Sections | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    precision: Precision = "float32",
    truncate_dim: int | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    with_text: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    vertical_chunk_size: int | None = None,
    max_tokens_per_step: int | None = None,
    max_in_flight: int | None = None,
    share_prefixes: bool = False,
    save_every: float = 5.0,
    state_every: int = STATE_EVERY,
    on_status: Callable[[Status], None] = lambda status: None,
) -> Summary:
    """Embed files of any number and length into one file of vectors, in bounded memory, as `thalweg embed` does.

    Finished vectors are kept in the folder `<out>.parts` until `out` is complete: after a crash, the same call with
    `resume=True` loses and repeats nothing. What cannot be read is counted and named in the summary; the rest goes on.

    Args:
        inputs: a file, a folder, a glob or "-" (stdin), or several.
        out: .parquet, .jsonl or .npy (ids beside it).
        model: as for `load`; an `Embedder` is taken as it is, without the options that follow.
        revision, device, dtype, quantize, special_tokens, max_uncut_chars: as for `load`.
        text_column, id_column: columns of tables; None: the first of text, content, body, …; ids of path and row.
        lines: every line of a text is a document.
        format, encoding, delimiter: of all inputs; None: by the suffix, or found out.
        globs: what to take out of folders instead of texts and tables.
        section_size, sections: how documents are cut, as in `Embedder.encode_stream`; neither: one vector a document.
        prompt, prompt_name: put before every document; neither: the model's prompt for documents, if it has one.
        precision: of the stored vectors. The ranges of int8 and uint8 are those of the whole run.
        truncate_dim, max_length: as `Embedder.encode_stream`.
        normalize: scale vectors to length 1; None: what the model says.
        with_text: store the text of each vector.
        resume, overwrite: continue an unfinished run, or start one; replace what is there.
        strict: stop at the first document that cannot be read, and refuse ids that repeat.
        vertical_chunk_size, max_tokens_per_step, max_in_flight, share_prefixes: as `Embedder.encode_stream`; they
            change speed and memory only.
        save_every, state_every: seconds of work, and tokens of a long document, that a crash may cost.
        on_status: called after every step, with the same object.

    Raises:
        InvalidInputError: an argument that cannot be used.
        CorpusError: an input that is not there; the output cannot be written as asked; a resumed run differs from the
            earlier one; or no document could be embedded.
        CheckpointError: the model cannot be found or loaded.
    """
    if resume and overwrite:
        raise InvalidInputError("resume and overwrite exclude each other")
    if format is not None and format not in NAMES:
        raise InvalidInputError(f"format must be one of {', '.join(NAMES)}, got {format!r:.80}")
    if lines and format not in (None, LINES):
        raise InvalidInputError(f"lines and format={format!r} exclude each other")
    options: dict[str, Any] = {
        "revision": revision,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "special_tokens": special_tokens,
        "max_uncut_chars": max_uncut_chars,
    }
    check_loading(model, options)
    settings = Settings(
        model=None if isinstance(model, Embedder) else lasting_name(model),
        revision=revision,
        prompt=prompt,
        prompt_name=prompt_name,
        section_size=section_size,
        sections=sections,
        precision=precision,
        truncate_dim=truncate_dim,
        normalize=normalize,
        max_length=max_length,
        columns=Columns(text_column, id_column),
        with_text=with_text,
        schedule={
            "vertical_chunk_size": vertical_chunk_size,
            "max_tokens_per_step": max_tokens_per_step,
            "max_in_flight": max_in_flight,
        },
        share_prefixes=share_prefixes,
        save_every=save_every,
        state_every=state_every,
        strict=strict,
    )
    reading = Reading(
        format,
        None if encoding is None else check_encoding(encoding),
        None if delimiter is None else check_delimiter(delimiter),
    )
    (target,) = map(Path, as_names("out", out))
    mode: Mode = "resume" if resume else "overwrite" if overwrite else "new"
    names = as_names("inputs", inputs)
    check_free(target, mode)
    found = discover(
        names,
        globs=[globs] if isinstance(globs, str) else globs,
        reading=reading,
        lines=lines,
        exclude=[target, *companions(target)],
    )
    return embed_files(
        model if isinstance(model, Embedder) else load(settings.model, **options),
        found.files,
        target,
        settings,
        unreadable=found.unreadable,
        left_out=found.left_out,
        mode=mode,
        on_status=on_status,
    )
