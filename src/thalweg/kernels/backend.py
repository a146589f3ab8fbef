"""What a backend is: a device, the dtypes it computes in, and its kernels by the names of the ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Takes: TypeAlias = Callable[[Sequence[Tensor], torch.dtype | None], bool]
"""Whether a kernel takes these tensors; the dtype is that of the result, where the op is told one."""


@dataclass(frozen=True)
class Kernel:
    """One kernel, without gradients.

    Attributes:
        run: of the op's own signature, but for what its docstring says.
        takes: device, dtypes and strides of the tensors that the op shows it.
        chunk_size: the inner chunk Q of a scan that is fastest in it; None where there is none.
        workspace: bytes of each tensor that lives inside it besides arguments and results, from the sizes that the op
            names; None where that is nothing to speak of.
    """

    run: Callable[..., Any]
    takes: Takes
    chunk_size: int | None = None
    workspace: Callable[..., list[int]] | None = None


@dataclass(frozen=True)
class Backend:
    """Kernels for one kind of device.

    Attributes:
        name: what `THALWEG_KERNELS` calls it.
        title: what `thalweg info` calls it.
        device: the type of the devices it is for.
        dtypes: of the models it is for.
        missing: why it cannot run here, or "".
        kernels: by the names of the ops.
    """

    name: str
    title: str
    device: str
    dtypes: frozenset[torch.dtype]
    missing: Callable[[], str]
    kernels: Mapping[str, Kernel]
