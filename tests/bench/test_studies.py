"""Which points a study has, what may not be asked for, and how long it is said to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from thalweg.bench.estimate import Estimate
from thalweg.bench.point import Point
from thalweg.bench.results import Results
from thalweg.bench.shapes import SHAPES
from thalweg.bench.studies import STUDIES, Request, points_of, quick_study
from thalweg.errors import InvalidInputError

from .points import row, tiny


def test_length() -> None:
    request = Request(shapes=("rwkv7-0.1b", "mistral-130m"), lengths=(512, 8192), vertical=(256,), windows=(None, 1024))
    found = [(p.shape, p.length, p.vertical_chunk_size, p.window) for p in points_of(["length"], request)]
    assert found == [
        ("rwkv7-0.1b", 512, 256, None),
        ("rwkv7-0.1b", 512, None, None),
        ("mistral-130m", 512, None, None),
        ("rwkv7-0.1b", 8192, 256, None),
        ("rwkv7-0.1b", 8192, None, None),
        ("mistral-130m", 8192, None, None),
        ("mistral-130m", 8192, None, 1024),
    ]


def test_chunk_and_batch() -> None:
    request = Request(shapes=("mamba2-130m",), lengths=(512,), vertical=(64, 128), inner=(32, 64), batches=(1, 32))
    chunk = points_of(["chunk"], request)
    assert {p.vertical_chunk_size for p in chunk if p.inner_chunk is None} == {64, 128, None}
    assert {p.inner_chunk for p in chunk} == {None, 32, 64}
    batch = points_of(["batch"], request)
    assert {(p.batch, p.vertical_chunk_size) for p in batch if p.tokens_per_step is None} == {
        (batch, v) for batch in (1, 32) for v in (64, 128, None)
    }
    assert sum(p.tokens_per_step is not None for p in batch) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("study", STUDIES)
def test_what_is_measured_by_default(study: str, device: str) -> None:
    points = points_of([study], Request(device=device, base={"dtype": "bfloat16"}))
    assert len({point.key for point in points}) == len(points) > 0
    assert all(point.device == device and point.dtype == "bfloat16" for point in points)
    if study == "length":
        assert {SHAPES[str(p.shape)].family for p in points} >= {"mamba2", "mamba", "rwkv7", "xlstm", "mistral"}


def test_studies_share_points() -> None:
    request = Request(shapes=("mamba2-130m",), lengths=(8192,))
    together = points_of(["chunk", "batch"], request)
    assert len(together) < sum(len(points_of([name], request)) for name in ("chunk", "batch"))


def test_quick_has_everything() -> None:
    points = quick_study("cpu", "float32", 2)
    assert {SHAPES[str(p.shape)].family for p in points} == {kind.family for kind in SHAPES.values()}
    assert any(p.inner_chunk for p in points)
    assert any(p.batch > 1 for p in points)
    assert all(p.layers and p.threads == 2 for p in points)


def test_refused() -> None:
    with pytest.raises(InvalidInputError, match="no study 'speed'; the studies: length"):
        points_of(["speed"], Request())
    with pytest.raises(InvalidInputError, match="'chunk' has nothing to measure"):
        points_of(["chunk"], Request(shapes=("mistral-7b",)))
    with pytest.raises(InvalidInputError, match="either a shape or a model"):
        Point("thalweg", 5)
    with pytest.raises(InvalidInputError, match="inner_chunk must be at least 1, got 0"):
        tiny(inner_chunk=0)


def test_estimate(tmp_path: Path) -> None:
    """Nothing is said before anything is known; then time follows the work, start-up apart."""
    points = [tiny(length, repeat=3) for length in (100, 200, 400)]
    with Results(tmp_path) as results:
        estimate = Estimate(points, results)
        assert estimate.seconds(points) is None
        assert estimate.seconds([]) == 0
        estimate.learn(points[0], row(points[0], seconds=1.0))
        assert estimate.seconds(points[1:]) == pytest.approx((2 * 3 + 2) + (4 * 3 + 2), rel=0.05)
