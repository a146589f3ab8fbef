"""Devices that cannot be had are refused with what helps, whatever torch raises for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thalweg.embedder.devices import check_device
from thalweg.errors import InvalidInputError


def test_devices_that_can_be_used() -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "CPU", "cpu cuda", 3.5, None, ["cpu"]])
def test_devices_that_torch_does_not_know(device: Any) -> None:
    with pytest.raises(InvalidInputError, match="cannot be used: it must be cpu, cuda, cuda:N or mps"):
        check_device(device)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a build with CUDA")
def test_cuda_without_cuda() -> None:
    for device in ("cuda", "cuda:7"):
        with pytest.raises(
            InvalidInputError, match=rf"device '{device}' cannot be used: PyTorch .* built without CUDA;"
        ):
            check_device(device)


@pytest.mark.parametrize("device", ["meta", "mps:99", "xpu", "hpu", "privateuseone", "vulkan"])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(InvalidInputError, match=device.partition(":")[0]):
        check_device(device)
