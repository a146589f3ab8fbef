"""The kernel of ssd.cpp: the scan of Mamba2, matrix products included, alone or with what surrounds it.

Letters: ops/ssd.py. Everything is summed in float32 and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from thalweg.isolation import Checked, isolated
from thalweg.kernels.native.library import DTYPES, call, empty, finite_flag, row_targets
from thalweg.packing import Packing

CHUNK_SIZE = 64
"""The inner chunk Q that is fastest here: next to nothing lies between the products."""

MACHINES = {"best": -1, "narrow": 0, "wide": 1, "paired": 2}
"""What the products are made for: registers of 8 floats, of 16, of pairs of bfloat16, which also rounds what is
multiplied. Where a machine has no registers of 16 it is "narrow" for all of them."""


@isolated("x", "dt", "B", "C")
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
    machine: str = "best",
) -> Checked:
    """`ops.ssd`."""
    x, B, C = (t if t.stride(1) == t.shape[2] else t.contiguous() for t in (x, B, C))
    n, heads, width = x.shape
    groups, state_width = B.shape[1:]
    y = empty(n if rows is None else len(rows), heads, width, dtype=x.dtype)
    final = empty(len(packing.wanted), state_width, heads, width)
    delta, log_decay = _steps(dt, A, dt_bias, dt_softplus, dt_limit)
    blocks, finite = packing.block_table(chunk_size or CHUNK_SIZE), finite_flag()
    call(
        "ssd", x.dtype, x, x.stride(0), B, B.stride(0), C, C.stride(0), None, None, 0, None, delta, log_decay,
        None if D is None else D.float(), blocks, len(blocks), min(n, chunk_size or CHUNK_SIZE), packing.segment_ids,
        packing.first_seen, packing.initial_rows, row_targets(n, rows),
        None if initial_state is None else initial_state.float().contiguous(), None, 0, None, 0, 0.0, y, final, finite,
        heads, groups, state_width, width, MACHINES[machine],
    )  # fmt: skip
    return Checked(y, final, bool(finite))


@isolated("xBC", "z", "dt")
def gated_ssd(
    xBC: Tensor,
    z: Tensor,
    dt: Tensor,
    A: Tensor,
    packing: Packing,
    *,
    head_dim: int,
    n_groups: int,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: tuple[float, float],
    norm_weight: Tensor,
    norm_groups: int,
    norm_eps: float,
    initial_state: tuple[Tensor, Tensor] | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
) -> Checked:
    """`ops.gated_ssd`, of the final states that of the scan: the convolution's is made of xBC alone."""
    n, heads = xBC.shape[0], len(A)
    state_width = (xBC.shape[1] - heads * head_dim) // (2 * n_groups)
    columns, state = initial_state or (None, None)
    y = empty(len(z), heads * head_dim, dtype=z.dtype)
    final = empty(len(packing.wanted), state_width, heads, head_dim)
    delta, log_decay = _steps(dt, A, dt_bias, True, dt_limit)
    blocks, finite = packing.block_table(chunk_size or CHUNK_SIZE), finite_flag()
    call(
        "ssd", z.dtype, xBC, xBC.stride(0), None, 0, None, 0, conv_weight.t().float().contiguous(),
        None if conv_bias is None else conv_bias.float(), conv_weight.shape[1],
        None if columns is None else columns.to(xBC.dtype).contiguous(), delta, log_decay,
        None if D is None else D.float(), blocks, len(blocks), min(n, chunk_size or CHUNK_SIZE), packing.segment_ids,
        packing.first_seen, packing.initial_rows, row_targets(n, rows),
        None if state is None else state.float().contiguous(), z, z.stride(0), norm_weight.float(), norm_groups,
        float(norm_eps), y, final, finite, heads, n_groups, state_width, head_dim, MACHINES["best"],
    )  # fmt: skip
    return Checked(y, final, bool(finite))


def workspace(d_inner: int, d_state: int, n_groups: int) -> list[int]:
    """The states of all heads, and what a block is taken into."""
    shared = n_groups * (5 * d_state + CHUNK_SIZE)
    return [4 * d_state * d_inner, 4 * CHUNK_SIZE * (3 * d_inner + shared)]


def _steps(
    dt: Tensor, A: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """delta and the log decay of each token and head, (N, H) float32."""
    dt = dt if dt.dtype in DTYPES and dt.stride(1) == 1 else dt.float().contiguous()
    bias = empty(dt.shape[1]).zero_() if dt_bias is None else dt_bias.float()
    delta, log_decay = empty(2, *dt.shape)
    call(
        "ssd_steps", dt.dtype, dt, dt.stride(0), bias, A.float(),
        int(dt_softplus), *(float(limit) for limit in dt_limit), delta, log_decay, *dt.shape,
    )  # fmt: skip
    return delta, log_decay
