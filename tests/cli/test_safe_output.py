"""Nothing that somebody else wrote reaches the terminal as it is: each kind of attack in each place that quotes a text,
and no module can write past the one that makes it safe."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

import thalweg
from thalweg.bench.agreement import Agreement
from thalweg.bench.compare import Comparison
from thalweg.bench.compare_worker import Side
from thalweg.bench.point import Point
from thalweg.bench.runner import Status as BenchStatus
from thalweg.cli import bench_progress, compare, embed, eval, mine, synth, synth_progress, train
from thalweg.cli import console as cli_console
from thalweg.cli.console import Console, stderr, stdout
from thalweg.cli.progress import progress_line
from thalweg.cli.show_hits import show_hits
from thalweg.cli.steps import steps_shown
from thalweg.corpus import Hit
from thalweg.corpus import Settings as CorpusSettings
from thalweg.corpus import Summary as CorpusSummary
from thalweg.corpus.report import ReportedFailure
from thalweg.errors import CorpusError
from thalweg.evaluation.table import Mean, Score, Table
from thalweg.synthesis.run import Status as SynthStatus
from thalweg.synthesis.settings import Settings as SynthSettings
from thalweg.training.data import Mined
from thalweg.training.progress_log import Status as TrainStatus
from thalweg.training.run import Summary as TrainSummary

from ..bench.points import row, tiny
from ..corpus.tiny import write_model
from ..synthesis.server import Answer, endpoint
from ..system.test_terminal import ATTACKS, obeyed
from .conftest import Command

MARKUP = "[/nothing] [bold]loud [link=evil.example]here [red]x :boom:"

SOURCE = Path(thalweg.__file__).parent

OURS = re.compile(r"\x1b\[[\d;]*m|\r?(\x1b\[1A)?\x1b\[2K|\x1b\[\?25[lh]")
"""Codes of rich's own: colours, and those of a line that is redrawn."""


def hit(attack: str) -> None:
    found = {"id": attack, "section": 0, "char_start": 0, "char_end": 9, "text": f"before {attack} after"}
    show_hits(stdout(), [Hit(0.5, found, Path(attack))], with_files=True)


def failures(attack: str) -> None:
    shown = (ReportedFailure(f"{attack}.txt", f"no column {attack!r}: {attack}", skipped=False),)
    summary = CorpusSummary(documents=1, rows=1, tokens=1, failed=1, shown=shown)
    embed._tell(stderr(), summary, Path(f"{attack}.npy"), CorpusSettings())


def scores(attack: str) -> None:
    score = Score(model=attack, task=attack, type="STS", measure=attack, score=0.5, seconds=1.0)
    eval._show(stdout(), Table([score], [Mean(attack, attack, 50.0, 50.0)], {}, []))


def comparison(attack: str) -> None:
    of_side = {
        **{"dimension": 8, "dtype": attack, "tokens": 1, "memory": {"peak_rss": 1}},
        **{"seconds": {"median": 1.0}, "tokens_per_s": {"median": 1.0}, "unread": [{"id": attack, "reason": attack}]},
    }
    cosine = {"mean": 1.0, "min": 1.0, "p1": 1.0, "p5": 1.0, "p50": 1.0}
    agreement = Agreement(1, 1, 1, cosine, [0], 0.0, 1.0, 1.0, 1.0, 1.0)
    side = Side(attack, {"prompt": attack})
    compare._show(Comparison(of_side, of_side, agreement, [{"id": attack}]), side, side)


def measured_point(attack: str) -> None:
    point = Point.from_json({**tiny().to_json(), "shape": None, "model": attack})
    failed = {**row(point), "status": "error", "message": attack}
    with bench_progress.bench_progress(stderr(), quiet=False) as follow:
        follow(BenchStatus(1, 2, None, point, failed))


def training(attack: str) -> None:
    counts = {attack: {"read": 2, "kept": 1, f"{attack} rows": 1}}
    train._tell(stderr(), TrainSummary(Path(attack), scores={attack: 0.5}, counts=counts, cut=1))


def training_progress(attack: str) -> None:
    with train._progress(stderr(), shown=True) as follow:
        follow(TrainStatus("train", 1, 2, {"step": 1, "dev": {attack: 0.5}, "metric": {attack: "Spearman"}}))


def rejected(attack: str) -> None:
    status = SynthStatus(wanted=2, accepted=1, rejected=Counter({attack: 1}))
    synth._tell(stderr(), status, SynthSettings({"sts": 2}), Path(attack), 1.0)


def mined(attack: str) -> None:
    mine._tell(stderr(), Mined(1, 1, 1, 1, 0, 0, 0), Path(f"{attack}.parquet"))


def steps(attack: str) -> None:
    with steps_shown(stderr(), 1, shown=True) as follow:
        follow.start(attack)
        follow.inside(attack)
        follow.end(attack)


def rule(attack: str) -> None:
    stdout().rule(attack, align="left")


def facts(attack: str) -> None:
    shown = cli_console.table(attack, "value")
    shown.add_row(attack, cli_console.text(attack, "red"))
    stdout().print(shown)


def anything(attack: str) -> None:
    stdout().print(attack, [attack], Path(attack), cli_console.text(attack), soft_wrap=True)


def json_result(attack: str) -> None:
    cli_console.print_json({attack: attack})


def error(attack: str) -> None:
    with pytest.raises(typer.Exit), cli_console.errors_told(debug=False):
        raise CorpusError(f"no column 'text'; it has: {attack}")


def system_error(attack: str) -> None:
    with pytest.raises(typer.Exit), cli_console.errors_told(debug=False):
        raise OSError(2, f"cannot open {attack}", attack)


def traceback(attack: str) -> None:
    try:
        raise CorpusError(attack)
    except CorpusError as error:
        cli_console.print_traceback(error)


def log_line(attack: str) -> None:
    """As Python shows it where no handler was set up, and as a library's own handler does, with a traceback."""
    handler = logging.StreamHandler(sys.stderr)
    with cli_console.logs_safe():
        try:
            raise CorpusError(attack)
        except CorpusError:
            where = ("library", logging.ERROR, attack, 1)
            handler.handle(logging.getLogger("library").makeRecord(*where, "asks: %s", (attack,), sys.exc_info()))


def warning(attack: str) -> None:
    with cli_console.logs_safe():
        print(warnings.formatwarning(attack, UserWarning, attack, 1), file=sys.stderr)


PLACES: list[Callable[[str], None]] = [
    *(hit, failures, scores, comparison, measured_point, training, training_progress, rejected, mined),
    *(steps, rule, facts, anything, json_result, error, system_error, traceback, log_line, warning),
]

Written = Callable[[], str]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Written:
    """What was written to both streams since the last look."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return lambda: "".join(capsys.readouterr())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_shown_and_not_sent(place: Callable[[str], None], attack: str, written: Written) -> None:
    place(attack)
    output = written()
    assert output
    assert not obeyed(output)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_markup_is_text(place: Callable[[str], None], written: Written) -> None:
    place(MARKUP)
    shown = " ".join(written().split())
    assert "nothing] [bold]loud [link=evil.example]here [red]x :boom:" in shown


@contextmanager
def on_a_terminal() -> Iterator[Console]:
    yield Console(file=sys.stderr, force_terminal=True, width=200, color_system="standard", legacy_windows=False)


def bar_of_steps(console: Console, attack: str) -> None:
    with steps_shown(console, 1, shown=True) as follow:
        follow.start(attack)
        follow.inside(attack)
        follow.end(attack)


def bar_of_points(console: Console, attack: str) -> None:
    point = Point.from_json({**tiny().to_json(), "shape": None, "model": attack})
    with bench_progress.bench_progress(console, quiet=False) as follow:
        follow(BenchStatus(1, 2, None, point, None))


def bar_of_training(console: Console, attack: str) -> None:
    with train._progress(console, shown=True) as follow:
        follow(TrainStatus("train", 1, 2, {"step": 1, "dev": {attack: 0.5}, "metric": {attack: "Spearman"}}))


def bar_of_synth(console: Console, attack: str) -> None:
    with synth_progress.synth_progress(console, None, shown=True) as follow:
        follow.follow(SynthStatus(wanted=1, step=attack))


def bar_while_others_write(console: Console, attack: str) -> None:
    """rich takes over both streams while a line is redrawn, and reads escapes out of what libraries write there."""
    with progress_line(console, shown=True), cli_console.logs_safe():
        where = ("library", logging.ERROR, "f", 1)
        assert logging.lastResort is not None
        logging.lastResort.handle(logging.getLogger("library").makeRecord(*where, attack, (), None))


def words_beside_work(console: Console, attack: str) -> None:
    with cli_console.working(console, attack) as tell:
        tell(attack)


def styled(console: Console, attack: str) -> None:
    console.print(attack, style="red")
    console.print(cli_console.panel(cli_console.text(attack), attack, attack))


BARS: list[Callable[[Console, str], None]] = [
    *(bar_of_steps, bar_of_points, bar_of_training, bar_of_synth, bar_while_others_write, words_beside_work, styled)
]


@pytest.mark.parametrize("place", BARS, ids=lambda place: place.__name__)
@pytest.mark.parametrize("attack", [*ATTACKS.values(), MARKUP], ids=[*ATTACKS, "markup"])
def test_a_terminal_gets_no_codes_but_ours(
    place: Callable[[Console, str], None], attack: str, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    with on_a_terminal() as console:
        place(console, attack)
    output = written()
    assert output
    ours = OURS.sub("", output)
    assert not obeyed(ours)
    if attack == MARKUP:
        assert "nothing] [bold]loud [link=evil.example]here [red]x :boom:" in ours


EVIL = "".join(ATTACKS.values()).replace("\udc9b", "")


@pytest.mark.skipif(os.name == "nt", reason="file names")
def test_a_corpus_full_of_attacks(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    """In texts, ids, column names and names of files and folders, from the run to the search."""
    name = "a\x1b[2J\x1b]0;t\x07\r\u202e\x9bb[bold]c"
    folder = tmp_path / f"in{name}"
    folder.mkdir()
    (folder / f"{name}.txt").write_bytes(b"\x00\x01 binary")
    (folder / f"{name}.csv").write_text(f"{name},other\nvalue,value\n")
    rows = [{"text": f"the river {EVIL} runs", "name": f"{EVIL}{number}"} for number in range(3)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    out = tmp_path / f"out{name}.parquet"
    result = thalweg_command("embed", folder, "-o", out, "--model", model_folder, "--id-column", "name")
    assert result.exit_code == 3
    assert "no text column" in result.stderr
    assert not obeyed(result.output)
    assert "a␛[2J␛]0;t␇␍\\u202e\\x9bb[bold]c" in result.stderr
    for more in ([], ["--json"]):
        found = thalweg_command("search", out, "river", *more)
        assert found.exit_code == 0, found.output
        assert not obeyed(found.output)
        assert "0;title" in found.output
    assert json.loads(found.stdout)[0]["text"] == rows[0]["text"]
    again = thalweg_command("embed", folder, "-o", out, "--model", model_folder)
    assert again.exit_code == 1
    assert not obeyed(again.output)


@pytest.mark.skipif(os.name == "nt", reason="file names")
def test_names_of_models_and_settings(thalweg_command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "m\x1b[2J\u202e[bold]x"
    write_model(folder, prompts={"query\x1b]0;t\x07[red]": "q\x9b: "})
    shown = thalweg_command("info", folder)
    assert shown.exit_code == 0
    assert not obeyed(shown.output)
    assert "m␛[2J\\u202e[bold]x" in shown.stdout
    assert "query␛]0;t␇[red]" in shown.stdout
    missing = thalweg_command("info", f"{folder}/none")
    assert missing.exit_code == 1
    assert not obeyed(missing.output)


@pytest.mark.parametrize("attack", [EVIL, MARKUP], ids=["controls", "markup"])
@pytest.mark.parametrize(
    "arguments",
    [("info", "model", "{}"), ("{}",), ("info", "--{}"), ("search", "x", "y", "-k", "{}"), ("bench", "--length", "{}")],
    ids=["too many", "no command", "no option", "no number", "no length"],
)
def test_wrong_usage_quotes_safely(thalweg_command: Command, arguments: tuple[str, ...], attack: str) -> None:
    """A shell puts names of files there: `thalweg info *`."""
    result = thalweg_command(*(argument.replace("{}", attack) for argument in arguments))
    assert result.exit_code == 2
    assert not obeyed(result.output)


def test_what_an_endpoint_says(thalweg_command: Command, tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": f"who are you? {EVIL}"}})
    with endpoint(lambda request: Answer(status=401, body=body)) as server:
        common = ["--base-url", server.url, "--model", EVIL, "-o", tmp_path / "out", "--counts", "sts=1"]
        result = thalweg_command("synth", *common)
    assert result.exit_code == 1
    assert "who are you? ␛[2J" in result.stderr
    assert not obeyed(result.output)


@pytest.mark.subprocess
@pytest.mark.parametrize("debug", [True, False])
def test_tracebacks_of_the_command(tmp_path: Path, debug: bool) -> None:
    """In a process of its own: what Python and typer would print of an error that nobody caught."""
    name = "no\x1b[2J\u202e\x9b"
    (tmp_path / "run.py").write_text(
        "import sys, thalweg.corpus\n"
        "from thalweg.cli import main\n"
        "def fail(path):\n"
        f"    raise {'thalweg.errors.CorpusError' if debug else 'ValueError'}({name!r})\n"
        "thalweg.corpus.opened.read_metadata = fail\n"
        f"sys.argv = ['thalweg', 'search', 'x', 'y', *{['--debug'] * debug}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "no␛[2J\\u202e\\x9b" in done.stderr
    assert not obeyed(done.stderr + done.stdout)


WRITERS = {"print", "echo", "secho", "pprint"}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
ALLOWED = {
    "cli/console.py": {"rich"},
    "cli/app.py": {"sys.stdout"},
    "embedder/progress_bar.py": {"tqdm"},
    "integrations/mteb.py": {"tqdm"},
}
"""tqdm shows nothing that somebody else wrote, but the name of a task, which is a class of the program."""


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines of a module that could write to a terminal, and how."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.partition(".")[0] in ("rich", "tqdm", "click"):
                    yield node.lineno, name.partition(".")[0]
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            if (name in WRITERS and (isinstance(node.func, ast.Name) or owner in ("typer", "click", "pprint"))) or (
                owner == "os" and name == "write"
            ):
                yield node.lineno, f"{owner}.{name}".strip(".")
        elif isinstance(node, ast.Attribute) and node.attr in STREAMS and getattr(node.value, "id", "") == "sys":
            yield node.lineno, f"sys.{node.attr}"


def test_one_module_writes_to_the_terminal() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        if place.startswith("assets/"):
            continue  # runs without thalweg, inside other libraries
        for line, what in writes(ast.parse(path.read_text(encoding="utf-8"))):
            if what not in ALLOWED.get(place, set()):
                found.append(f"{place}:{line} uses {what}; write through thalweg.cli.console instead")
    assert not found


@pytest.mark.parametrize(
    "program",
    [
        "print(1)",
        "typer.echo(1)",
        "import rich",
        "from rich.text import Text",
        "sys.stderr.write('')",
        "os.write(1, b'')",
    ],
)
def test_the_test_before_finds_what_it_looks_for(program: str) -> None:
    assert list(writes(ast.parse(program)))
