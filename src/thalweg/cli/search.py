"""`thalweg search`."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli.console import errors_told, print_json, stderr, stdout
from thalweg.cli.options import (
    Debug,
    Device,
    DtypeOption,
    MaxUncutChars,
    QuantizeOption,
    Revision,
    SpecialTokensOption,
)
from thalweg.cli.show_hits import show_answers
from thalweg.errors import InvalidInputError

if TYPE_CHECKING:
    from thalweg.corpus import Hit

STDIN = "-"


class By(str, Enum):
    """What a hit is."""

    section = "section"
    document = "document"


def search(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT... QUERY...",
            show_default=False,
            help="What `thalweg embed` wrote (.parquet, .jsonl, .npy), one file or several; then questions, or any "
            "texts.",
        ),
    ],
    queries: Annotated[
        str | None,
        typer.Option("--queries", metavar="FILE", show_default=False, help="File with a question a line; - for stdin."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to show for each question.")] = 5,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            show_default=False,
            help="Search only rows for which this is true, such as \"n_tokens > 20 and path like '%.md'\".",
        ),
    ] = None,
    by: Annotated[
        By, typer.Option(help="Show the best sections, or the best section of each of the best documents.")
    ] = By.section,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id 'org/name'.", show_default="the one that OUT names")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    special_tokens: SpecialTokensOption = None,
    max_uncut_chars: MaxUncutChars = None,
    prompt: Annotated[str | None, typer.Option(help="Text put before the query.", show_default=False)] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="The model's prompt of that name.", show_default="query, if it has one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    debug: Debug = False,
) -> None:
    """Show the passages nearest to one or several questions. Every vector is compared, in bounded memory."""
    if prompt is not None and prompt_name is not None:
        raise typer.BadParameter("--prompt and --prompt-name exclude each other")
    files, asked = split(arguments)
    if not asked and queries is None:
        raise typer.BadParameter(f"there is no question after {arguments[-1]!r}; give a QUERY, or --queries FILE")
    with errors_told(debug):
        import thalweg

        questions = asked + ([] if queries is None else read_queries(queries))
        corpus = thalweg.open_corpus(
            files,
            model=model,
            revision=revision,
            device=device,
            dtype=dtype.value if dtype else None,
            quantize=quantize.value if quantize else None,
            special_tokens=special_tokens.value if special_tokens else None,
            max_uncut_chars=max_uncut_chars,
        )
        if corpus.named_model is not None:
            # A file that somebody else may have written: its model is told before it is loaded, and never fetched.
            stderr().print(f"model: {corpus.named_model}, named by {files[0]}")
        found = corpus.search(questions, k, where=where, by=by.value, prompt=prompt, prompt_name=prompt_name)
        several = len(questions) > 1 or queries is not None
        if not as_json:
            show_answers(stdout(), list(zip(questions, found, strict=True)), headed=several, n_files=len(files))
        elif several:
            print_json([{"query": query, "hits": plain(hits)} for query, hits in zip(questions, found, strict=True)])
        else:
            print_json(plain(found[0]))


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(files, questions): the first is a file, and so is what follows it and ends like one. A question with spaces that
    ends like a file is one, unless there is such a file.
    """
    from thalweg.corpus import OUTPUT_SUFFIXES

    n = 1
    while n < len(arguments) and arguments[n].lower().endswith(OUTPUT_SUFFIXES):
        if any(map(str.isspace, arguments[n])) and not Path(arguments[n]).is_file():
            break
        n += 1
    return arguments[:n], arguments[n:]


def read_queries(name: str) -> list[str]:
    """The lines of a file, or of stdin.

    Raises:
        InvalidInputError: it is not UTF-8, has no lines, or one of them is empty.
    """
    where = "stdin" if name == STDIN else name
    data = typer.get_binary_stream("stdin").read() if name == STDIN else Path(name).read_bytes()
    try:
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"--queries: {where} is not UTF-8 ({error.reason} at byte {error.start})") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise InvalidInputError(f"--queries: {where} is empty; it must hold a question a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InvalidInputError(f"--queries: line {number} of {where} is empty; every line is a question")
    return lines


def plain(hits: list[Hit]) -> list[dict[str, Any]]:
    """Hits as JSON takes them."""
    return [
        {
            "rank": rank,
            "score": hit.score,
            "corpus": str(hit.file),
            **{name: _plain(value) for name, value in hit.row.items()},
        }
        for rank, hit in enumerate(hits, 1)
    ]


def _plain(value: Any) -> Any:
    """What JSON has no form for as its text."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
