"""Which tasks: benchmarks and tasks by their names in mteb, and tasks of a user's own Python file."""

from __future__ import annotations

import fnmatch
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import mteb
from mteb.abstasks import AbsTask

from thalweg.errors import InvalidInputError


def benchmark_tasks(name: str) -> list[AbsTask]:
    """The tasks of a benchmark of mteb.

    Raises:
        InvalidInputError: mteb has no benchmark of that name.
    """
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        raise InvalidInputError(f"mteb has no benchmark {name!r}: {error.args[0]}") from error


def named_tasks(names: Sequence[str]) -> list[AbsTask]:
    """Tasks of mteb by name.

    Raises:
        InvalidInputError: mteb has no task of that name.
    """
    try:
        return [mteb.get_task(name) for name in names]
    except KeyError as error:
        raise InvalidInputError(f"mteb does not know the task: {error.args[0]}") from error


def file_tasks(source: str) -> list[AbsTask]:
    """The tasks that a Python file or module defines: `tasks.py`, `tasks.py:Name`, `package.tasks:Name`.

    Every class of it that is a task of mteb with `metadata` counts, or only the one named. The file is run.

    Raises:
        InvalidInputError: there is no such file or module, it cannot be run, or has no such task.
    """
    place, _, wanted = source.rpartition(":") if _names_class(source) else (source, "", "")
    module = _load(place)
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, AbsTask)
        and value.__module__ == module.__name__
        and "metadata" in vars(value)
        and wanted in ("", name)
    ]
    if not found:
        what = f"no task {wanted!r}" if wanted else "no subclass of an mteb task with metadata"
        raise InvalidInputError(f"{place} has {what}")
    return [task() for task in found]


def chosen(tasks: Iterable[AbsTask], patterns: Sequence[str]) -> list[AbsTask]:
    """The tasks whose names match one of the patterns (`*needle*`), all where there are none.

    Raises:
        InvalidInputError: a pattern that matches nothing.
    """
    tasks = list(tasks)
    names = [task.metadata.name for task in tasks]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InvalidInputError(f"no task is called {pattern!r}; there are {', '.join(names)}")
    return [
        task
        for task in tasks
        if not patterns or any(fnmatch.fnmatchcase(task.metadata.name, pattern) for pattern in patterns)
    ]


def _names_class(source: str) -> bool:
    return ":" in source[2:] and source.rpartition(":")[2].isidentifier()  # a Windows path has a colon, too


def _load(place: str) -> ModuleType:
    path = Path(place)
    try:
        if path.suffix == ".py":
            name = f"thalweg_eval_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(place)
    except Exception as error:  # whatever running somebody's file raises
        raise InvalidInputError(f"cannot load tasks from {place}: {type(error).__name__}: {error}") from error
