"""What is measured: the paper's studies as lists of points, and the quick one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from thalweg.bench.point import THALWEG, TRANSFORMER, Point
from thalweg.bench.shapes import SHAPES, shape
from thalweg.engine.schedule import Schedule
from thalweg.errors import InvalidInputError
from thalweg.families import FAMILIES

V = Schedule().vertical_chunk_size

LENGTHS = {
    "cpu": (512, 1024, 2048, 4096, 8192, 16384, 32768),
    "cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576),
}
SMALL = (*(family.sizes[0].name for family in FAMILIES), "mistral-130m")
LARGE = (*(name for family in FAMILIES for name in family.measured_on_gpu), "mistral-7b", "modernbert-base")
SHAPES_OF = {"cpu": (*SMALL, "modernbert-base"), "cuda": LARGE}
"""What is measured where nothing else is asked for."""

VERTICAL = (128, 256, 512, 1024, 2048, 4096, 8192)
INNER = (32, 64, 128, 256, 512)
BATCHES = (1, 32, 128)
WITH_INNER = frozenset(family.name for family in FAMILIES if family.scan_products is not None)
"""Families whose time depends on an inner chunk."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; empty stands for the study's own choice on the device.

    Sizes and settings that all points share lie in `base`.
    """

    device: str = "cpu"
    shapes: Sequence[str] = ()
    models: Sequence[tuple[str, bool]] = ()
    lengths: Sequence[int] = ()
    vertical: Sequence[int] = ()
    inner: Sequence[int] = ()
    batches: Sequence[int] = ()
    windows: Sequence[int | None] = ()
    peers: Sequence[str] | None = None
    gguf: str | None = None
    base: dict[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def subjects(self, recurrent: bool | None = None) -> Iterator[Point]:
        """A point of one token for every model asked for; of one sort only, where that is said."""
        asked = bool(self.shapes or self.models)
        for name in self.shapes if asked else SHAPES_OF[self.kind]:
            if recurrent in (None, shape(name).recurrent):
                yield self._point(THALWEG if shape(name).recurrent else TRANSFORMER, shape=name)
        for name, attends in self.models:
            if recurrent in (None, not attends):
                yield self._point(TRANSFORMER if attends else THALWEG, model=name)

    def _point(self, runner: str, **of: str) -> Point:
        base = dict(self.base)
        if runner != TRANSFORMER:
            base.pop("attention", None)
        return Point(runner, 1, device=self.device, **of, **base)  # type: ignore[arg-type]


def length_study(request: Request) -> list[Point]:
    """Time and memory against the length of one text: vertical, horizontal, and transformers."""
    points: list[Point] = []
    for length in request.lengths or LENGTHS[request.kind]:
        for subject in request.subjects():
            for batch in request.batches or (1,):
                text = replace(subject, length=length, batch=batch)
                points += _transformers(text, request) if subject.runner == TRANSFORMER else _both(text, request)
    return points


def _both(text: Point, request: Request) -> Iterator[Point]:
    for v, q in product(request.vertical or (V,), request.inner or (None,)):
        yield replace(text, vertical_chunk_size=v, inner_chunk=q, limit=True)
    yield replace(text, inner_chunk=None)


def _transformers(text: Point, request: Request) -> Iterator[Point]:
    if text.shape is not None and SHAPES[text.shape].family != "mistral":
        yield text
        return
    for window in request.windows or (None, 4096):
        if window is None or window < text.length:  # a window as wide as the text is none
            yield replace(text, window=window)


def chunk_study(request: Request) -> list[Point]:
    """One length: sweeps of the vertical chunk V, from a block to the whole text, and of the inner chunk Q."""
    points: list[Point] = []
    for length in request.lengths or ((16384,) if request.kind == "cpu" else (65536,)):
        for subject in request.subjects(recurrent=True):
            text = replace(subject, length=length)
            for batch in request.batches or (1,):
                lot = replace(text, batch=batch)
                points += [replace(lot, vertical_chunk_size=v) for v in request.vertical or VERTICAL if v < length]
                points.append(lot)
                if subject.shape is None or SHAPES[subject.shape].family in WITH_INNER:
                    swept = replace(lot, vertical_chunk_size=V)
                    points += [replace(swept, inner_chunk=q) for q in request.inner or INNER]
    return points


def batch_study(request: Request) -> list[Point]:
    """Batches of 1, 32 and 128 texts: time per text at several V, horizontal, and in steps of a fixed size."""
    points: list[Point] = []
    for length in request.lengths or ((512,) if request.kind == "cpu" else (4096,)):
        for subject in request.subjects():
            for batch in request.batches or BATCHES:
                lot = replace(subject, length=length, batch=batch)
                if subject.runner == TRANSFORMER:
                    points += _transformers(lot, request)
                    continue
                sizes = request.vertical or (64, 128, 256, 512, 1024)
                points += [replace(lot, vertical_chunk_size=v) for v in sizes if v < length]
                points.append(lot)
                points.append(replace(lot, vertical_chunk_size=V, tokens_per_step=Schedule().max_tokens_per_step))
    return points


def peer_study(request: Request) -> list[Point]:
    """The same weights through other software that is installed here."""
    from thalweg.bench.peers import CHUNK, LLAMA_CPP, installed

    points: list[Point] = []
    for length in request.lengths or (4096,):
        for subject in request.subjects(recurrent=True):
            ours = replace(subject, length=length, vertical_chunk_size=V)
            points.append(ours)
            family = SHAPES[subject.shape].family if subject.shape else ""
            names = installed(family) if request.peers is None else request.peers
            for name in names:
                theirs = replace(ours, runner=name, vertical_chunk_size=CHUNK if "loop" in name else None)
                points.append(replace(theirs, inner_chunk=None, limit=False))
        if request.gguf is not None:
            points.append(Point(LLAMA_CPP, length, model=request.gguf, device=request.device))
    return points


STUDIES: dict[str, Callable[[Request], list[Point]]] = {
    "length": length_study,
    "chunk": chunk_study,
    "batch": batch_study,
    "peers": peer_study,
}
"""By the name that `--study` takes."""


def points_of(names: Sequence[str], request: Request) -> list[Point]:
    """The points of some studies, each once.

    Raises:
        InvalidInputError: no such study, or one that has no points.
    """
    points: dict[str, Point] = {}
    for name in names:
        if name not in STUDIES:
            raise InvalidInputError(f"there is no study {name!r}; the studies: {', '.join(STUDIES)}")
        found = STUDIES[name](request)
        if not found:
            raise InvalidInputError(
                f"the study {name!r} has nothing to measure: it needs a recurrent --shape or --model"
            )
        points |= {point.key: point for point in found}
    return list(points.values())


def quick_study(device: str, dtype: str, threads: int | None) -> list[Point]:
    """All families with two layers each, and transformers, in five minutes on two cores."""
    base: dict[str, object] = {"dtype": dtype, "threads": threads, "warmup": 1, "repeat": 5, "budget": 1.0}
    base |= {"layers": 2, "vocabulary": 4096}
    recurrent = [name for name in SMALL if SHAPES[name].recurrent]

    def ask(*shapes: str, **wanted: Any) -> Request:
        return Request(device=device, shapes=shapes, base=base | wanted.pop("base", {}), **wanted)

    points = [
        replace(point, limit=point.limit and point.length == 4096)
        for point in length_study(ask(*recurrent, lengths=(1024, 4096, 16384, 32768)))
        if not point.horizontal or V < point.length < 32768
    ]
    points += length_study(ask("mistral-130m", lengths=(1024, 4096, 16384), windows=(None,)))
    points += length_study(ask("mistral-130m", lengths=(1024, 4096, 8192), windows=(1024,)))
    points += length_study(ask("modernbert-base", lengths=(1024, 4096, 8192), base={"layers": 3}))
    points += chunk_study(ask("mamba2-130m", lengths=(8192,), inner=(32, 64, 128, 256)))
    points += batch_study(ask("mamba2-130m", batches=(1, 32), vertical=(64, 128)))
    return list({point.key: point for point in points}.values())
