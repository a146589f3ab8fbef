"""Two sides on the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from thalweg.bench.agreement import agreement
from thalweg.bench.compare import compare, parse_settings
from thalweg.bench.compare_worker import Side, Task
from thalweg.bench.process import Limits
from thalweg.errors import InvalidInputError, MeasurementError

from ..corpus.tiny import make_text, write_model

ROOMY = Limits(memory=8 << 30, seconds=100)


def vectors(n: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_the_same_vectors_agree() -> None:
    a = vectors(50, 16)
    found = agreement(a, 3 * a, k=5)
    assert found.cosine is not None
    assert found.cosine["min"] == pytest.approx(1, abs=1e-6)
    assert (found.overlap, found.nearest, found.across) == (1, 1, 1)
    assert found.spearman == pytest.approx(1)
    assert found.largest_difference == pytest.approx(0, abs=1e-6)
    assert found.verdict.startswith("the same vectors")


def test_a_turned_space_keeps_its_neighbours() -> None:
    """Neighbours survive a rotation; vectors and looking across do not."""
    a = vectors(200, 16)
    turn, _ = np.linalg.qr(vectors(16, 16, 1))
    found = agreement(a, a @ turn.astype(np.float32), k=5)
    assert found.overlap == pytest.approx(1, abs=0.01)
    assert found.across is not None
    assert found.across < 0.3
    assert "embed everything anew" in found.verdict


def test_other_width() -> None:
    found = agreement(vectors(60, 16), vectors(60, 8, 1), k=5)
    assert (found.cosine, found.across, found.largest_difference) == (None, None, None)
    assert found.overlap is not None
    assert found.overlap < 0.4
    assert "different neighbours" in found.verdict


def test_spearman_is_scipys() -> None:
    a, b = vectors(30, 16), vectors(30, 16, 1)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b)]
    expected = []
    for i in range(30):
        others = [j for j in range(30) if j != i]
        expected.append(spearmanr(*(each[others] @ each[i] for each in unit)).statistic)
    assert agreement(a, b).spearman == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_texts(n: int) -> None:
    found = agreement(vectors(n, 8), vectors(n, 8))
    assert found.cosine is not None
    assert (found.overlap is None) == (n == 1)
    assert found.verdict
    json.dumps(found.to_json(), allow_nan=False)


def test_farthest() -> None:
    a = vectors(20, 8)
    b = a.copy()
    b[13] *= -1
    found = agreement(a, b)
    assert found.farthest[0] == 13
    assert found.cosine is not None
    assert found.cosine["min"] == pytest.approx(-1)


def test_nothing_to_compare() -> None:
    with pytest.raises(InvalidInputError, match="got 3 and 2"):
        agreement(vectors(3, 8), vectors(2, 8))


def test_settings() -> None:
    assert parse_settings(["dtype=bfloat16,vertical_chunk_size=256", "prompt=read: this, then that=so"]) == {
        "dtype": "bfloat16",
        "vertical_chunk_size": 256,
        "prompt": "read: this, then that=so",
    }
    with pytest.raises(InvalidInputError, match="'speed=9' is no setting; write NAME=VALUE with one of device, dtype"):
        parse_settings(["speed=9"])
    with pytest.raises(InvalidInputError, match="threads must be a whole number of at least 1, got 'two'"):
        parse_settings(["threads=two"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "one"), write_model(folder / "other", seed=1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "rows.jsonl"
    rows = [json.dumps({"text": make_text(5 + 7 * i, seed=i)}) for i in range(30)]
    path.write_text("\n".join([*rows, '{"text": 5}']), encoding="utf-8")
    return path


@pytest.mark.subprocess
def test_settings_of_one_model(models: tuple[Path, Path], texts: Path) -> None:
    a = Side(str(models[0]), {"threads": 1})
    b = Side(str(models[0]), {"threads": 1, "vertical_chunk_size": 16, "inner_chunk": 8})
    found = compare(a, b, Task(a, (str(texts),)), ROOMY, k=5)
    assert found.agreement.n == 30
    assert found.agreement.largest_difference is not None
    assert found.agreement.largest_difference < 1e-5
    assert found.agreement.verdict.startswith("the same vectors")
    assert found.a["tokens"] == found.b["tokens"] == sum(row["tokens"] for row in found.rows)
    assert found.a["memory"]["peak_rss"] > 0
    assert [each["id"] for each in found.unread] == [f"{texts}:30"]
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.subprocess
def test_two_models_by_sections(models: tuple[Path, Path], texts: Path) -> None:
    a, b = (Side(str(folder), {"threads": 1}) for folder in models)
    found = compare(a, b, Task(a, (str(texts),), section_size=20, repeat=1), ROOMY)
    assert found.agreement.n > 30
    assert found.agreement.overlap is not None
    assert found.agreement.overlap < 0.95
    narrow = Side(str(models[1]), {"threads": 1, "truncate_dim": 7})
    found = compare(a, narrow, Task(a, (str(texts),), most=9, repeat=1), ROOMY)
    assert (found.agreement.n, found.agreement.cosine) == (9, None)
    assert found.b["dimension"] == 7


@pytest.mark.subprocess
def test_a_side_that_fails(models: tuple[Path, Path], texts: Path) -> None:
    a, b = Side(str(models[0])), Side("/no/such/model")
    with pytest.raises(MeasurementError, match=r"B .*/no/such/model"):
        compare(a, b, Task(a, (str(texts),)), ROOMY)
