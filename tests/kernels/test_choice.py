"""Which kernels run: what the environment says, what is there, and what a model is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import thalweg
from thalweg import kernels
from thalweg.cli.info import _facts
from thalweg.errors import InvalidInputError
from thalweg.kernels import native

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The choice is made anew in every test, with nothing in the environment, and again after it."""
    for name in ("THALWEG_KERNELS", "THALWEG_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    kernels.enabled.cache_clear()
    yield
    monkeypatch.undo()
    kernels.enabled.cache_clear()


def names() -> list[str]:
    return [backend.name for backend in kernels.enabled()]


@pytest.mark.parametrize(
    ("given", "chosen"), [("", ["native"]), ("auto", ["native"]), ("native", ["native"]), ("torch", [])]
)
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, given: str, chosen: list[str]) -> None:
    monkeypatch.setenv("THALWEG_KERNELS", given)
    assert names() == chosen


@pytest.mark.parametrize("given", ["", "auto", "torch"])
def test_the_older_switch_means_torch(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("THALWEG_NATIVE", "0")
    monkeypatch.setenv("THALWEG_KERNELS", given)
    assert names() == []
    assert kernels.report(CPU, torch.float32) == [("native CPU kernels", "switched off by THALWEG_NATIVE=0")]


def test_switches_that_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_NATIVE", "0")
    monkeypatch.setenv("THALWEG_KERNELS", "native")
    with pytest.raises(InvalidInputError, match="THALWEG_KERNELS='native' and THALWEG_NATIVE=0 contradict"):
        kernels.enabled()


def test_an_unknown_name_is_quoted_with_the_choices_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_KERNELS", "Native")
    with pytest.raises(InvalidInputError, match="THALWEG_KERNELS must be one of auto, torch, native, got 'Native'"):
        thalweg.load()


def test_a_backend_asked_for_by_name_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never PyTorch instead, without a word; with "auto" PyTorch it is."""
    absent = replace(native.BACKEND, missing=lambda: "not compiled; install a compiler")
    monkeypatch.setattr(kernels, "BACKENDS", (absent,))
    assert names() == []
    assert kernels.report(CPU, torch.float32) == [("native CPU kernels", "not compiled; install a compiler")]
    kernels.enabled.cache_clear()
    monkeypatch.setenv("THALWEG_KERNELS", "native")
    with pytest.raises(InvalidInputError, match="'native' cannot be used: not compiled; install a compiler; unset it"):
        thalweg.load()


def test_the_first_backend_that_takes_the_tensors_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one is a row: what it does not take goes to the next."""

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    kernel = kernels.Kernel(twice, lambda tensors, dtype: tensors[0].dtype == torch.float64)
    other = replace(native.BACKEND, name="other", missing=lambda: "", kernels={"relu_square": kernel})
    monkeypatch.setattr(kernels, "BACKENDS", (other, native.BACKEND))
    assert names() == ["other", "native"]
    x = torch.ones(3, 4)
    with torch.no_grad():
        assert kernels.kernel("relu_square", x.double()) is twice
        assert kernels.kernel("relu_square", x) is native.BACKEND.kernels["relu_square"].run
        assert kernels.kernel("relu_square", x.half()) is None
        assert kernels.kernel("no such op", x) is None
    assert kernels.kernel("relu_square", x.double()) is None  # gradients are wanted


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("cpu", torch.float32, "used"),
        ("cpu", torch.bfloat16, "used"),
        ("cpu", torch.float16, "not used: the model is float16"),
        ("meta", torch.float32, "not used: the model is on meta"),
    ],
)
def test_what_is_reported(device: str, dtype: torch.dtype, said: str) -> None:
    assert kernels.report(torch.device(device), dtype) == [("native CPU kernels", said)]


def test_info_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("native CPU kernels", "used") in _facts(thalweg.load())
    kernels.enabled.cache_clear()
    monkeypatch.setenv("THALWEG_KERNELS", "torch")
    assert ("native CPU kernels", "switched off by THALWEG_KERNELS=torch") in _facts(thalweg.load())
