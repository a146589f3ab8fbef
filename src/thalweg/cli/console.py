"""What all commands share: where they write, how errors are told, and exit codes.

This module alone writes to the terminal, and alone imports rich. Whatever comes through it is safe (`system/terminal`):
texts, ids, file names and messages are mostly somebody else's. `tests/cli/test_safe_output.py` holds everything to it.
"""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from thalweg.errors import ThalwegError
from thalweg.system.memory_errors import one_line, out_of_memory
from thalweg.system.terminal import safe_json, safe_text

ERROR = 1
SOME_FAILED = 3
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 all is well · 1 an error, told in one line · 2 wrong usage · "
    "3 done, but some of it failed, which is named · 130 interrupted"
)


class Console(RichConsole):
    """A console that sends no control character of a text on, whatever brackets, colons and escapes it holds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string, made safe before its width is measured."""
        return super().render_str(safe_text(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever else comes, made safe at the last moment. rich's own control codes are no text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(safe_text(segment.text), segment.style)


def stderr() -> Console:
    """For everything that is not the result."""
    return Console(stderr=True, soft_wrap=True)


def stdout() -> Console:
    """For results."""
    return Console()


def print_json(value: Any) -> None:
    """A result as JSON."""
    stdout().print(safe_json(to_json(value)), soft_wrap=True)


def to_json(value: Any) -> str:
    """JSON as it is written into files and shown; all characters escaped where stdout does not take every one."""
    takes_all = stdout().encoding.lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not takes_all, indent=2, allow_nan=False)


def text(content: str, style: str = "") -> Text:
    """A text with a style."""
    return Text(safe_text(content), style)


def table(*head: str) -> Table:
    """A table without lines; without a head, one of names and values."""
    return Table(*head, show_header=bool(head), box=None, padding=(0, 2, 0, 0))


def panel(content: Text, title: str, subtitle: str) -> Panel:
    """A text in a frame."""
    return Panel(content, title=text(title), subtitle=text(subtitle), title_align="left", subtitle_align="right")


@contextmanager
def working(console: Console, words: str) -> Iterator[Callable[[str], None]]:
    """Words beside something that turns, on a terminal; yields what changes them."""
    with console.status(text(words)) as status:
        yield lambda words: status.update(text(words))


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return text(task.description)


_COLUMNS: dict[str, Callable[[], ProgressColumn]] = {
    "bar": lambda: BarColumn(20),
    "count": MofNCompleteColumn,
    "elapsed": TimeElapsedColumn,
    "left": TimeRemainingColumn,
    "words": _Description,
}


class ProgressBar(Progress):
    """A line that is redrawn, and gone at the end; nothing where there is no terminal.

    columns: names in `_COLUMNS`.
    """

    def __init__(self, console: Console, *columns: str) -> None:
        shown = (_COLUMNS[name]() for name in columns)
        super().__init__(*shown, console=console, transient=True, disable=not console.is_terminal)


LESS_MEMORY = "a model takes less with --dtype bfloat16 or --quantize; `thalweg info MODEL` says how much"


@contextmanager
def errors_told(debug: bool, less_memory: str = LESS_MEMORY) -> Iterator[None]:
    """End the command with one line on stderr and an exit code, instead of a traceback (unless debugging).

    less_memory: what to do where memory is short.
    """
    try:
        yield
    except KeyboardInterrupt:
        stderr().print("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # whoever reads our output has had enough; typer ends quietly
    except (ThalwegError, OSError, MemoryError, RuntimeError) as error:
        if debug:
            raise
        if isinstance(error, (ThalwegError, OSError)):
            print_error(str(error))
        elif out_of_memory(error):
            print_error(f"there is not enough memory ({one_line(error)}); {less_memory}")
        else:
            raise
        raise typer.Exit(ERROR) from None


def print_error(message: str) -> None:
    """One line, red."""
    stderr().print(Text.assemble(("error: ", "bold red"), safe_text(" ".join(message.split()))))


def print_traceback(error: BaseException) -> None:
    """An error of ours, or one that is being looked into with --debug."""
    stderr().print("".join(traceback.format_exception(error)), end="")


class Commands(TyperGroup):
    """The commands together. A message about wrong usage quotes arguments, and a shell fills in names of files."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        with _safe_usage_errors():
            return super().make_context(*arguments, **settings)

    def invoke(self, context: Any) -> Any:
        with _safe_usage_errors():
            return super().invoke(context)


_ClickException: Any = typer.BadParameter.__mro__[2]  # of click, which newer releases of typer bring along themselves


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    try:
        yield
    except _ClickException as error:
        error.message = safe_text(error.message)
        raise


class _SafeRecord(logging.LogRecord):
    """A line of a log, ours or a library's."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.exc_info and self.exc_info[0]:
            self.exc_text = safe_text("".join(traceback.format_exception(*self.exc_info)).removesuffix("\n"))

    def getMessage(self) -> str:
        return safe_text(super().getMessage())


@contextmanager
def logs_safe() -> Iterator[None]:
    """Whoever logs or warns, and wherever that is written: it is safe."""
    factory, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def safe_warning(*arguments: Any, **settings: Any) -> str:
        return safe_text(format_warning(*arguments, **settings))

    logging.setLogRecordFactory(_SafeRecord)
    warnings.formatwarning = safe_warning
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = format_warning
