"""What Mamba2 (arXiv 2405.21060) does between the projections of a layer: convolution, scan, gate and norm.

Legend: N tokens, H heads of P channels, G groups, K state width, W taps, E = H P + 2 G K; letters of the scan: ssd.py.

    x, B, C = silu(causal_conv(xBC))
    y       = rms_norm((ssd(x, dt, A, B, C) + D x) * silu(z)) * weight       the norm of each of some groups

The state is that of the convolution and that of the scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.ops.causal_conv import causal_conv, last_columns, sequential_causal_conv
from thalweg.ops.norms import gated_rms_norm
from thalweg.ops.ssd import default_chunk_size as ssd_chunk_size
from thalweg.ops.ssd import sequential_ssd, ssd
from thalweg.ops.tiles import wide
from thalweg.packing import Packing


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
    norm_weight: Tensor,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    norm_groups: int = 1,
    norm_eps: float = 1e-5,
    initial_state: tuple[Tensor, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All of a layer between its projections, over a packed run.

    Args:
        xBC: (N, E), floating: x, B and C before the convolution.
        z: (N or M, H P), of the rows that are wanted.
        dt, A, D, dt_bias, dt_limit, rows, chunk_size: as in `ssd`, with a softplus.
        packing: the run's layout, N tokens.
        head_dim: P.
        n_groups: G.
        conv_weight, conv_bias: (E, W), and (E,) or None.
        norm_weight, norm_groups, norm_eps: (H P,); the norm is one of each of `norm_groups` equal parts.
        initial_state: (S_in, W - 1, E) columns before the segments and (S_in, K, H, P) float32; None stands for zeros.

    Returns:
        y (N or M, H P) in z's dtype, and the final states: (S_out, W - 1, E) in xBC's dtype, (S_out, K, H, P) float32.

    Raises:
        InvalidInputError: as `causal_conv` and `ssd` do.
    """
    columns, state = initial_state or (None, None)
    heads, shared = len(A), (xBC.shape[1] - len(A) * head_dim) // 2
    _check(xBC, z, conv_weight, packing, head_dim, heads, shared, n_groups, columns, state, rows)
    if run := kernels.kernel("gated_ssd", z, xBC):
        conv = last_columns(xBC, packing, conv_weight.shape[1] - 1, columns)
        y, final = run(
            xBC, z, dt, A, packing, head_dim=head_dim, n_groups=n_groups, conv_weight=conv_weight, conv_bias=conv_bias,
            D=D, dt_bias=dt_bias, dt_limit=dt_limit, norm_weight=norm_weight, norm_groups=norm_groups,
            norm_eps=norm_eps, initial_state=initial_state, rows=rows, chunk_size=chunk_size,
        )  # fmt: skip
        return y, (conv, final)
    xBC, conv = causal_conv(xBC, conv_weight, conv_bias, packing, initial_state=columns, silu=True)
    x, B, C = xBC.split([heads * head_dim, shared, shared], dim=1)
    B, C = (t.unflatten(1, (n_groups, -1)) for t in (B, C))
    y, final = ssd(
        x.unflatten(1, (heads, head_dim)), dt, A, B, C, packing,
        D=D, dt_bias=dt_bias, dt_limit=dt_limit, initial_state=state, rows=rows, chunk_size=chunk_size,
    )  # fmt: skip
    return gated_rms_norm(y.flatten(1), z, norm_weight, norm_eps, norm_groups), (conv, final)


def sequential_gated_ssd(
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
    norm_weight: Tensor,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    norm_groups: int = 1,
    norm_eps: float = 1e-5,
    initial_state: tuple[Tensor, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The reference: of the sequential references, same signature as `gated_ssd` (`chunk_size` has no meaning here)."""
    columns, state = initial_state or (None, None)
    out_dtype, dtype = z.dtype, wide(z)
    xBC, conv = sequential_causal_conv(xBC, conv_weight, conv_bias, packing, initial_state=columns, silu=True)
    d_inner, shared = len(A) * head_dim, (xBC.shape[1] - len(A) * head_dim) // 2
    x, B, C = xBC.split([d_inner, shared, shared], dim=1)
    y, final = sequential_ssd(
        x.unflatten(1, (-1, head_dim)), dt, A, B.unflatten(1, (n_groups, -1)), C.unflatten(1, (n_groups, -1)), packing,
        D=D, dt_bias=dt_bias, dt_limit=dt_limit, initial_state=state, rows=rows,
    )  # fmt: skip
    parts = (y.flatten(1).to(dtype) * F.silu(z.to(dtype))).unflatten(1, (norm_groups, -1))
    normed = parts / (parts.square().mean(2, keepdim=True) + norm_eps).sqrt()
    return (normed.flatten(1) * norm_weight).to(out_dtype), (conv, final)


def is_one_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all of it is one kernel without gradients: then nothing that lies between its parts is in memory."""
    return kernels.planned("gated_ssd", device, dtype) is not None


def default_chunk_size(device: torch.device, dtype: torch.dtype) -> int:
    """The inner chunk Q of the scan without gradients."""
    run = kernels.planned("gated_ssd", device, dtype) or kernels.planned("ssd", device, dtype)
    return run.chunk_size if run and run.chunk_size else ssd_chunk_size(dtype)


def gated_ssd_blocks(
    n: int, d_inner: int, d_state: int, n_groups: int, n_heads: int, device: torch.device, dtype: torch.dtype
) -> list[int]:
    """Bytes of each tensor that lives inside `gated_ssd` of n tokens without gradients, arguments and results apart."""
    steps = [4 * n * n_heads] * 4
    run = kernels.planned("gated_ssd", device, dtype)
    if run and run.workspace:
        return steps + run.workspace(d_inner, d_state, n_groups)
    convolved = d_inner + 2 * n_groups * d_state
    chunk = default_chunk_size(device, dtype)
    per_block = [n_heads * chunk * chunk] * 3 + [d_state * d_inner, chunk * d_inner] * 4
    return [*steps, dtype.itemsize * n * convolved, dtype.itemsize * n * d_inner, *(4 * size for size in per_block)]


def _check(
    xBC: Tensor,
    z: Tensor,
    conv_weight: Tensor,
    packing: Packing,
    head_dim: int,
    heads: int,
    shared: int,
    n_groups: int,
    columns: Tensor | None,
    state: Tensor | None,
    rows: Sequence[int] | None,
) -> None:
    n, d_inner = packing.n_tokens, heads * head_dim
    if xBC.ndim != 2 or len(xBC) != n or xBC.shape[1] != d_inner + 2 * shared or shared < 1 or shared % n_groups:
        raise InvalidInputError(
            f"xBC must be (N={n}, H P + 2 G K) with H={heads}, P={head_dim}, G={n_groups}, got {tuple(xBC.shape)}"
        )
    expected: tuple[int, ...] = (n if rows is None else len(rows), d_inner)
    if z.shape != expected:
        raise InvalidInputError(f"z must be (N or M, H P) = {expected}, got {tuple(z.shape)}")
    if conv_weight.ndim != 2 or len(conv_weight) != xBC.shape[1]:
        raise InvalidInputError(f"conv_weight must be (E={xBC.shape[1]}, W), got {tuple(conv_weight.shape)}")
    expected = (packing.n_states, conv_weight.shape[1] - 1, xBC.shape[1])
    if columns is not None and columns.shape != expected:
        raise InvalidInputError(f"columns must be (S_in, W-1, E) = {expected}, got {tuple(columns.shape)}")
    expected = (packing.n_states, shared // n_groups, heads, head_dim)
    if state is not None and state.shape != expected:
        raise InvalidInputError(f"the scan's state must be (S_in, K, H, P) = {expected}, got {tuple(state.shape)}")
