"""Help texts, version, and that none of it waits for torch."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import typer

import thalweg
from thalweg.cli.app import app

from .conftest import Command


def test_help_names_all_commands_and_exit_codes(thalweg_command: Command) -> None:
    result = thalweg_command("--help")
    assert result.exit_code == 0
    for word in ("embed", "search", "info", "demo", "--version", "3 done, but some of it failed"):
        assert word in result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("embed", ["INPUT...", "--out", "--sections", "--resume", "--strict", "--glob", "130 interrupted", ".npy"]),
        ("search", ["OUT", "QUERY", "--json", "-k", "--model", "--where", "--by", "--queries"]),
        ("info", ["MODEL", "--revision", "--dtype", "--quantize"]),
        ("export", ["MODEL", "DIR", "--format", "stock", "--dtype", "--overwrite", "Example:"]),
        ("mine", ["DATA", "--out", "--corpus", "--range-max", "--library", "Example: thalweg mine"]),
        ("demo", ["QUESTION", "-k"]),
        ("bench", ["--quick", "--study", "--shape", "--length", "--report", "Example: thalweg bench"]),
        ("synth", ["--base-url", "--counts", "--mine", "--dry-run", "--api-key-env", "Example: thalweg synth"]),
        ("compare", ["A", "[B]", "--texts", "--b", "Example: thalweg compare default --b dtype=bfloat16"]),
    ],
)
def test_every_command_explains_itself(thalweg_command: Command, command: str, words: list[str]) -> None:
    result = thalweg_command(command, "--help")
    assert result.exit_code == 0
    for word in words:
        assert word in result.output


FRAGMENTS = re.compile(
    r"^(?:Of|To|That|As|At|Beside|Likewise|With|Only|Its)\b|^[a-z](?!entence)|\bso many\b|\bgoes on\b|\btold\b"
)
"""How a help text does not begin, and words that stumble."""


def parameters() -> list[tuple[str, Any]]:
    """All options and arguments of all commands."""
    group = typer.main.get_command(app)
    commands = group.commands.items()  # type: ignore[attr-defined]
    return [(f"{name} {parameter.name}", parameter) for name, each in commands for parameter in each.params]


@pytest.mark.parametrize(("name", "parameter"), [pytest.param(*each, id=each[0]) for each in parameters()])
def test_help_texts_are_sentences(name: str, parameter: Any) -> None:
    if parameter.name == "help":
        return
    text = parameter.help
    assert text, name
    assert text.endswith((".", "}.")), text
    assert not FRAGMENTS.search(text), text


@pytest.mark.parametrize("name", list(typer.main.get_command(app).commands))
def test_a_paragraph_of_a_help_text_is_wrapped_by_the_terminal_alone(name: str) -> None:
    help = typer.main.get_command(app).commands[name].help  # type: ignore[attr-defined]
    assert not re.search(r"[^\n]\n[^\n]", help)


@pytest.mark.subprocess
def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "thalweg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"thalweg {thalweg.__version__}\n"


def test_version(thalweg_command: Command) -> None:
    result = thalweg_command("--version")
    assert (result.exit_code, result.output) == (0, f"thalweg {thalweg.__version__}\n")


@pytest.mark.subprocess
@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_pyarrow(arguments: list[str]) -> None:
    code = (
        "import sys; from thalweg.cli.app import app\n"
        f"try: app({arguments})\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'pyarrow', 'numpy', 'tokenizers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["embed"],
        ["embed", "a.txt"],
        ["embed", "a.txt", "-o", "x.npy", "--sections", "0"],
        ["embed", "a.txt", "-o", "x.npy", "--precision", "int4"],
        ["embed", "a.txt", "-o", "x.npy", "--resume", "--overwrite"],
        ["embed", "a.txt", "-o", "x.npy", "--prompt", "a", "--prompt-name", "b"],
        ["search", "x.npy", "words", "--prompt", "a", "--prompt-name", "b"],
        ["search", "x.npy", "words", "-k", "0"],
        ["bench", "--length", "x"],
        ["compare", "default"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(thalweg_command: Command, arguments: list[str]) -> None:
    assert thalweg_command(*arguments).exit_code == 2
