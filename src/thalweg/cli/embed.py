"""`thalweg embed`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.checks import lasting_name
from thalweg.cli.console import INTERRUPTED, SOME_FAILED, Console, errors_told, stderr, table, text
from thalweg.cli.embed_summary import input_lines
from thalweg.cli.options import (
    Debug,
    Device,
    DtypeOption,
    MaxUncutChars,
    Model,
    PrecisionName,
    QuantizeOption,
    Revision,
    SpecialTokensOption,
    load_model,
)
from thalweg.cli.progress import duration, progress_line
from thalweg.cli.section_options import SectionModeName, parse_sections
from thalweg.inputs.formats import LINES, NAMES, TABLE_SUFFIXES, TEXT_SUFFIXES
from thalweg.system.words import counted

if TYPE_CHECKING:
    from thalweg.corpus import Mode, Settings, Summary
    from thalweg.embedder.embedder import Embedder

INPUT_PANEL, VECTOR_PANEL, RUN_PANEL = "Input", "Vectors", "Run"


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            show_default=False,
            help=f"Files, folders, globs, or - for stdin. Tables ({', '.join(TABLE_SUFFIXES)}) hold one document a "
            "row, any other file is one text; .gz of all these. Folders give tables, "
            f"{' and '.join(TEXT_SUFFIXES)}, hidden files left out.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", show_default=False, help="File of vectors: .parquet, .jsonl or .npy (ids beside it)."
        ),
    ],
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    special_tokens: SpecialTokensOption = None,
    max_uncut_chars: MaxUncutChars = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that holds the text.",
            show_default="text, content, body, …",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of a table that holds the id.", show_default="path:row", rich_help_panel=INPUT_PANEL),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line of text is a document.", rich_help_panel=INPUT_PANEL)
    ] = False,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            show_default="by the suffix; stdin is text",
            help=f"Format of all inputs: {', '.join(NAMES)}.",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="UTF-8; recognised in .csv and .tsv",
            help="Encoding of all inputs but Parquet, such as latin-1 or utf-16.",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            metavar="CHARACTER",
            show_default="recognised; a tab in .tsv",
            help="What separates the columns of CSV and TSV, such as ; or tab.",
            rich_help_panel=INPUT_PANEL,
        ),
    ] = None,
    globs: Annotated[
        list[str] | None,
        typer.Option(
            "--glob", metavar="PATTERN", help="What to take out of folders instead.", rich_help_panel=INPUT_PANEL
        ),
    ] = None,
    sections: Annotated[
        str | None,
        typer.Option(
            metavar="SECTION",
            show_default="one vector a document",
            help="Make a vector for every section of a document: N tokens, paragraph, sentence, heading, or N of them "
            "(5:sentence).",
            rich_help_panel=VECTOR_PANEL,
        ),
    ] = None,
    section_mode: Annotated[
        SectionModeName | None,
        typer.Option(
            "--section-mode",
            help="Vector of a section: the mean over its tokens with all before them in view, the document up to its "
            "end (prefix), or a text of its own (isolated).",
            show_default="mean; prefix for models with last-token pooling",
            rich_help_panel=VECTOR_PANEL,
        ),
    ] = None,
    look_ahead: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Tokens after a section that count as well.", rich_help_panel=VECTOR_PANEL
        ),
    ] = 0,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Follow stdin (INPUT is -): write a vector of the text so far to a .jsonl file after every N tokens, "
            "while more arrives.",
            rich_help_panel=VECTOR_PANEL,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text put before every document.", rich_help_panel=VECTOR_PANEL)
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(
            help="The model's prompt of that name.",
            show_default="document, if it has one",
            rich_help_panel=VECTOR_PANEL,
        ),
    ] = None,
    precision: Annotated[
        PrecisionName, typer.Option(help="Numbers of the stored vectors.", rich_help_panel=VECTOR_PANEL)
    ] = PrecisionName.float32,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first dimensions.", rich_help_panel=VECTOR_PANEL)
    ] = None,
    no_normalize: Annotated[
        bool, typer.Option("--no-normalize", help="Do not scale to length 1.", rich_help_panel=VECTOR_PANEL)
    ] = False,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="nothing is cut",
            help="Cut documents after N tokens.",
            rich_help_panel=VECTOR_PANEL,
        ),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Do not store the text of each vector.", rich_help_panel=VECTOR_PANEL)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue a run that was broken off, or start one.", rich_help_panel=RUN_PANEL),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=RUN_PANEL)
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at the first document that cannot be read, and refuse ids that repeat.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False,
    vertical_chunk_size: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one document in one step.", show_default="1024", rich_help_panel=RUN_PANEL),
    ] = None,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one step.", show_default="2048", rich_help_panel=RUN_PANEL),
    ] = None,
    max_in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Long documents at a time.", show_default="8", rich_help_panel=RUN_PANEL),
    ] = None,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Run what documents have in common at their beginning once (64 tokens or more).",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds of work that a crash may cost.", rich_help_panel=RUN_PANEL)
    ] = 5.0,
    state_every: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Tokens of a long document that a crash may cost (0: the whole document).",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 200_000,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=RUN_PANEL)] = False,
    debug: Debug = False,
) -> None:
    """Embed texts of any number and length into one file of vectors.

    What cannot be read (not UTF-8, binary, gone) is reported and counted; the rest goes on.

    Finished vectors are kept in OUT.parts until OUT is complete: after a crash,
    the same command with --resume loses and repeats nothing.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if prompt is not None and prompt_name is not None:
        raise typer.BadParameter("--prompt and --prompt-name exclude each other")
    if format_ is not None and format_ not in NAMES:
        raise typer.BadParameter(f"--format {format_} is none of {', '.join(NAMES)}")
    if lines and format_ not in (None, LINES):
        raise typer.BadParameter("--lines and --format exclude each other")
    if every is not None:
        _check_following(
            inputs,
            {
                "--sections": sections,
                "--section-mode": section_mode,
                "--look-ahead": look_ahead,
                "--resume": resume,
                "--lines": lines,
                "--format": format_,
                "--glob": globs,
                "--delimiter": delimiter,
                "--text-column": text_column,
                "--id-column": id_column,
            },
        )
        sections, section_mode = str(every), SectionModeName.prefix
    cut = parse_sections(sections, section_mode, look_ahead)
    vectors = {
        "prompt": prompt,
        "prompt_name": prompt_name,
        "sections": cut,
        "precision": precision.value,
        "truncate_dim": truncate_dim,
        "normalize": False if no_normalize else None,
        "max_length": max_length,
        "with_text": not no_text,
    }
    schedule = {
        "vertical_chunk_size": vertical_chunk_size,
        "max_tokens_per_step": max_tokens_per_step,
        "max_in_flight": max_in_flight,
    }
    with errors_told(debug), unforeseen_shown(debug):
        if every is not None:
            from thalweg.corpus import Settings

            settings = Settings(model=lasting_name(model), revision=revision, schedule=schedule, **vectors)  # type: ignore[arg-type]
            mode: Mode = "overwrite" if overwrite else "new"

            def load() -> Embedder:
                return load_model(
                    settings.model,
                    revision,
                    device,
                    dtype,
                    quantize,
                    special_tokens=special_tokens,
                    max_uncut_chars=max_uncut_chars,
                )

            _follow(out, settings, mode, load, encoding, quiet)
            return
        failed = _run(
            inputs,
            out,
            quiet,
            model=model,
            revision=revision,
            device=device,
            dtype=dtype.value if dtype else None,
            quantize=quantize.value if quantize else None,
            special_tokens=special_tokens.value if special_tokens else None,
            max_uncut_chars=max_uncut_chars,
            text_column=text_column,
            id_column=id_column,
            lines=lines,
            format=format_,
            encoding=encoding,
            delimiter=delimiter,
            globs=globs or [],
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            share_prefixes=share_prefixes,
            save_every=save_every,
            state_every=state_every,
            **vectors,
            **schedule,
        )
    if failed:
        raise typer.Exit(SOME_FAILED)


def _check_following(inputs: list[str], others: dict[str, object]) -> None:
    """Raises:
    typer.BadParameter: options that do not fit --every.
    """
    if inputs != ["-"]:
        raise typer.BadParameter("--every follows stdin: INPUT must be - alone")
    for name, value in others.items():
        if value:
            raise typer.BadParameter(f"--every and {name} exclude each other")


def _follow(
    out: Path, settings: Settings, mode: Mode, load: Callable[[], Embedder], encoding: str | None, quiet: bool
) -> None:
    """Rows of stdin while it arrives."""
    from thalweg.corpus import check_free, follow_stdin
    from thalweg.inputs.encodings import check_encoding

    check_free(out, mode)
    reading = None if encoding is None else check_encoding(encoding)
    console = stderr()
    told = "there is no vector yet"

    def note(rows: int, tokens: int) -> None:
        nonlocal told
        told = f"{counted(rows, 'vector')}, {counted(tokens, 'token')} → {out}"

    try:
        follow_stdin(load(), out, settings, encoding=reading, mode=mode, on_row=note)
    except KeyboardInterrupt:
        console.print(f"interrupted: {told}")
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        console.print(told)


def _run(inputs: list[str], out: Path, quiet: bool, **options: Any) -> int:
    """The run itself; how many documents failed."""
    import thalweg
    from thalweg.corpus import STDIN, parts_path

    console = stderr()
    try:
        with progress_line(console, shown=not quiet) as follow:
            summary = thalweg.embed_corpus(inputs, out, on_status=follow, **options)
    except KeyboardInterrupt:
        if parts_path(out).exists() and STDIN not in inputs:
            console.print(f"interrupted; what is done is saved in {parts_path(out)}: go on with --resume")
        else:
            console.print("interrupted; there is nothing to go on with")
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        _tell(console, summary, out, options["max_length"])
    return summary.failed


def _tell(console: Console, summary: Summary, out: Path, max_length: int | None) -> None:
    """Failures in a table, what became of the input, then one line on what came of the run."""
    documents, vectors = counted(summary.documents, "document"), counted(summary.rows, "vector")
    if summary.nothing_to_do:
        console.print(f"{out} is complete: {documents}, {vectors}; nothing to do")
        return
    if summary.shown:
        failures = table("document", "what happened")
        for told in summary.shown:
            failures.add_row(told.id, text(told.reason, "" if told.skipped else "red"))
        console.print(failures)
        more = summary.failed + summary.skipped - len(summary.shown)
        console.print(
            f"{summary.failed:,} failed, {summary.skipped:,} skipped"
            + (f", {more:,} of them not shown" if more else "")
            + f"; all are listed in {out}.failures.jsonl"
        )
    for line in input_lines(summary):
        console.print(line)
    if summary.cut:
        console.print(f"--max-length {max_length} cut {summary.cut:,} of {documents}")
    rate = summary.new_tokens / max(summary.seconds, 1e-9)
    console.print(
        f"{documents}, {vectors}, {counted(summary.tokens, 'token')}"
        + (f" ({counted(summary.saved, 'document')} from the earlier run)" if summary.saved else "")
        + f" in {duration(summary.seconds)}, {rate:,.0f} tokens/s → {out}"
    )


@contextmanager
def unforeseen_shown(debug: bool) -> Iterator[None]:
    """With --debug, where in thalweg it was that a file could not be read for a reason that nobody has thought of."""
    log, handler = logging.getLogger("thalweg"), logging.StreamHandler()
    before = log.level
    if debug:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
