"""What all commands share: where they write, how errors are told, and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from thalweg.errors import ThalwegError

ERROR = 1
SOME_FAILED = 3
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 all is well · 1 an error, told in one line · 2 wrong usage · "
    "3 done, but some of it failed, which is named · 130 interrupted"
)


def stderr() -> Console:
    """For everything that is not the result. Texts are shown as they are, whatever brackets and colons they hold."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def stdout() -> Console:
    """For results."""
    return Console(highlight=False, markup=False, emoji=False)


@contextmanager
def errors_told(debug: bool) -> Iterator[None]:
    """End the command with one line on stderr and an exit code, instead of a traceback (unless debugging)."""
    try:
        yield
    except KeyboardInterrupt:
        stderr().print("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # whoever reads our output has had enough; typer ends quietly
    except (ThalwegError, OSError) as error:
        if debug:
            raise
        print_error(str(error))
        raise typer.Exit(ERROR) from None


def print_error(message: str) -> None:
    """One line, red."""
    stderr().print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))
