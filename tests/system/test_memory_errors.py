"""What says that memory is short, whoever says it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thalweg.system.memory_errors import one_line, out_of_memory


def test_the_errors_of_numpy_and_torch() -> None:
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(1 << 60, np.uint8)
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (by_numpy.value, by_torch.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")):
        assert out_of_memory(error)
        assert 0 < len(one_line(error)) <= 200


def test_other_errors() -> None:
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("out of memory"))
