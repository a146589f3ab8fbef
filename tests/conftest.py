"""For all tests: where libraries keep files, and which tier a test is in.

`make quick` leaves out everything that carries one of the marks in `pyproject.toml`. They come from here, by a test's
file or fixtures, or from a decorator; and a test that starts a Python process or kills one without its mark fails.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Generator
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import tests.examples  # noqa: F401  registers the profiles of Hypothesis

# Where transformers copies Python files of folders that are opened with trust_remote_code: not into the user's home. It
# is read when transformers is first imported, also by the processes that tests start.
_modules = tempfile.TemporaryDirectory(prefix="thalweg-tests-")
os.environ["HF_MODULES_CACHE"] = _modules.name

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # it would send from the middle of any test

# What training data is made into.
_data_sets = tempfile.TemporaryDirectory(prefix="thalweg-tests-")
os.environ["HF_DATASETS_CACHE"] = _data_sets.name

MARKS_OF_FILES = {
    "*/test_memory_plan.py": ["memory", "subprocess"],
    "checkpoints/test_memory.py": ["memory", "subprocess"],
    "training/test_train_families.py": ["training"],
    "training/test_train_processes.py": ["training"],
    "training/test_train_quantized.py": ["training"],
    "training/test_train_resume.py": ["training"],
    "checkpoints/test_describe.py": ["subprocess"],
    "checkpoints/test_fuzz.py": ["slow", "subprocess"],
    "bench/test_measure.py": ["slow"],
    "cli/test_eval.py": ["slow"],
    "cli/test_synth.py": ["slow"],
    "corpus/test_resume.py": ["slow"],
    "evaluation/test_local.py": ["slow"],
    "gradients/test_checkpointed.py": ["slow"],
    "integrations/test_transformers_auto.py": ["slow"],
    "synthesis/*": ["slow"],
    "test_wheel.py": ["wheel", "subprocess"],
}
MARKS_OF_FIXTURES = {"forked": ["subprocess"]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        fixtures = getattr(item, "fixturenames", ())
        marks = [marks for pattern, marks in MARKS_OF_FILES.items() if fnmatch(path, pattern)]
        marks += [marks for name, marks in MARKS_OF_FIXTURES.items() if name in fixtures]
        for mark in {name for names in marks for name in names}:
            item.add_marker(mark)


_needed: set[str] = set()
"""The marks that what the present test has done so far calls for."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Python processes take seconds to start; what libraries ask `uname` takes none."""
    if event == "subprocess.Popen" and Path(str(arguments[0])).name.startswith("python"):
        _needed.add("subprocess")
    elif event == "os.kill" and arguments[1] in (signal.SIGKILL, signal.SIGINT):
        _needed.add("kill")


sys.addaudithook(_watch)
_start = BaseProcess.start


def _watched_start(process: BaseProcess) -> None:
    _needed.add("subprocess")
    _start(process)


BaseProcess.start = _watched_start  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    _needed.clear()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield
    missing = sorted(mark for mark in _needed if item.get_closest_marker(mark) is None)
    if missing:
        pytest.fail(f"this test has to be marked {' and '.join(missing)}: it starts or kills a Python process")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures of matplotlib that were saved as PNG."""
    from matplotlib.figure import Figure

    saved: list[Any] = []
    save = Figure.savefig

    def savefig(self: Figure, path: Path, **settings: Any) -> None:
        if path.suffix == ".png":
            saved.append(self)
        save(self, path, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved
