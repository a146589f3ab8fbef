"""The native kernels: they are there, and in bfloat16 as near to the exact result as PyTorch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.harness import Op, case, parts, rebuild, relative_error, with_kernels
from tests.ops.registry import OPS
from thalweg import kernels
from thalweg.kernels import native
from thalweg.kernels.native import kernels as row_kernels
from thalweg.kernels.native import mlstm as mlstm_kernels
from thalweg.kernels.native import rwkv7 as rwkv7_kernels
from thalweg.kernels.native.ssd import ssd as native_ssd
from thalweg.models.layers import Norm, add_projected
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.models.rwkv7 import RWKV7, RWKV7Config
from thalweg.models.xlstm import XLSTM, XLSTMConfig
from thalweg.ops.norms import Gate, rms_norm_gate
from thalweg.ops.wkv7 import wkv7
from thalweg.packing import Packing

needed = pytest.mark.skipif(native.BACKEND not in kernels.enabled(), reason="switched off")


def test_they_were_compiled() -> None:
    """Whoever runs these tests develops thalweg, and needs a C++ compiler."""
    assert native.missing() == ""


@needed
def test_what_they_take() -> None:
    def taken(*tensors: torch.Tensor) -> bool:
        return kernels.kernel("silu_multiply", *tensors) is not None

    x = torch.ones(3, 4)
    assert not taken(x)  # gradients are wanted
    with torch.no_grad():
        assert taken(x)
        assert taken(x.bfloat16())
        assert not taken(x.half())
        assert not taken(x.double())
        assert not taken(x.t())
        assert not taken(x, x.bfloat16())
        assert not taken(x.to("meta"))
        with torch.autocast("cpu"):
            assert not taken(x)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square of the error over that of the exact result; 0 where there is nothing (no carried columns)."""
    if want.numel() == 0:
        return 0.0
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()


@pytest.mark.parametrize(
    "op", [op for op in OPS if op.name.startswith(("ssd", "causal_conv", "mlstm"))], ids=lambda op: op.name
)
def test_bfloat16_is_no_worse_than_without_kernels(op: Op) -> None:
    """For mlstm at most twice as far: its products are bfloat16 with kernels and float32 without. (Its model's distance
    to float32 is the same within a few percent, and a third of transformers'.)"""
    factor = 2.0 if op.name.startswith("mlstm") else 1.1
    packing = Packing([150, 1, 2, 70, 300, 5], n_carried=2, wanted=(0, 4))
    inputs, state = case(op, packing, 0)
    y, final = op.sequential(**inputs, packing=packing, initial_state=state)
    in_half = ("x", "B", "C", "weight", "q", "k", "v")
    half = {name: t.bfloat16() if name in in_half else t.float() for name, t in inputs.items()}
    low_state = rebuild(state, [t.float() for t in parts(state)])
    errors = {}
    for on in (True, False):
        with torch.no_grad(), with_kernels(on):
            fast = op.fast.get("dispatched") or op.fast["packed"]
            got, got_final = fast(**half, packing=packing, initial_state=low_state)
        errors[on] = [distance(a, b) for a, b in zip((got, *parts(got_final)), (y, *parts(final)), strict=True)]
    for with_them, without in zip(errors[True], errors[False], strict=True):
        assert with_them <= factor * without + 1e-4


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_norm_and_residual(dtype: torch.dtype, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    norm = Norm(width, 1e-5).requires_grad_(False)
    norm.weight.normal_()
    layer = torch.nn.Linear(20, width, bias=bias).to(dtype)
    u, x = torch.randn(9, width), torch.randn(9, 20).to(dtype)
    want_sum = add_projected(u, layer, x).detach()
    with torch.no_grad():
        with with_kernels(False):
            want, plain = norm(u, dtype), add_projected(u.clone(), layer, x)
        got, got_sum = norm(u, dtype), add_projected(u.clone(), layer, x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_sum, plain)
    # With gradients PyTorch makes the product itself, whose sums may be rounded elsewhere (`layers.widened`).
    torch.testing.assert_close(
        plain, want_sum, rtol=1.3e-6, atol=1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    )


RANKS = {f"rank_{name}": 3 for name in "wavg"}
MODELS = {
    "mamba2": lambda: Mamba2(Mamba2Config(20, d_model=17, n_layers=3, n_heads=3, head_dim=7, d_state=5)),
    "mamba2 with groups, without biases": lambda: Mamba2(
        Mamba2Config(20, 17, 2, n_heads=6, head_dim=33, d_state=19, n_groups=3, d_conv=3, conv_bias=False)
    ),
    "xlstm": lambda: XLSTM(XLSTMConfig(20, d_model=17, n_layers=3, n_heads=3, d_qk=15, d_v=21, d_ffn=37)),
    "xlstm with biases": lambda: XLSTM(XLSTMConfig(20, 17, 2, n_heads=3, d_qk=15, d_v=21, d_ffn=37, bias=True)),
    "rwkv7": lambda: RWKV7(RWKV7Config(20, d_model=33, n_layers=3, head_dim=11, d_value=39, d_ffn=41, **RANKS)),
}


@pytest.mark.parametrize("rows", [None, (3, 180)], ids=["all rows", "some rows"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_odd_widths_are_the_same_with_kernels(name: str, rows: tuple[int, ...] | None) -> None:
    """float32 alike; bfloat16 as near to float32 as without kernels, up to the luck of rounding."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    packing = Packing([150, 1, 30, 2], n_carried=2, wanted=(0, 2))
    tokens = torch.arange(packing.n_tokens) % 20
    state = tuple(type(s)(*(torch.randn_like(t) for t in s)) for s in model.init_state(2))
    with torch.no_grad():
        with with_kernels(False):
            exact, exact_state = model(tokens, packing, state, rows)
        got, got_state = model(tokens, packing, state, rows)
        torch.testing.assert_close(got, exact, rtol=0, atol=2e-5)
        torch.testing.assert_close(got_state, exact_state, rtol=1e-4, atol=2e-5)
        model.bfloat16()
        errors = {}
        for on in (True, False):
            with with_kernels(on):
                errors[on] = distance(model(tokens, packing, state, rows)[0], exact.double())
    assert errors[True] <= 1.25 * errors[False]


@needed
def test_wkv7_neither_drifts_nor_overflows() -> None:
    """The kernel goes token by token in float32."""
    op = next(op for op in OPS if op.name == "wkv7-hardly-any-decay")
    packing = Packing([50_000], wanted=(0,))
    inputs, _ = case(op, packing, 0)
    with torch.no_grad():
        exact, exact_state = wkv7(**inputs, packing=packing)
        y, state = wkv7(**{name: t.float() for name, t in inputs.items()}, packing=packing)
    assert relative_error(y, exact) < 1e-5
    assert relative_error(state, exact_state) < 1e-5


@pytest.mark.subprocess
def test_no_kernel_reads_or_writes_outside_its_tensors() -> None:
    """All of them at odd sizes under AddressSanitizer."""
    script = Path(__file__).parents[2] / "scripts" / "check_kernels.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@needed
@pytest.mark.parametrize("value", [0.0, 1e-30, 88.0, -88.0, 1e4, -1e4, float("inf"), float("nan")])
def test_extreme_activations_are_those_of_pytorch(value: float) -> None:
    """A gate or a convolution far out must not overflow where PyTorch does not; NaN stays NaN."""
    x, weight = torch.full((5, 40), value), torch.ones(40, 4)
    packing = Packing.whole([5])
    with torch.no_grad():
        got = row_kernels.causal_conv(x, weight, torch.zeros(40), packing, initial_state=None, silu=True)
    want = torch.nn.functional.silu(x * torch.arange(1, 6).clamp(max=4)[:, None])
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-30)


@needed
@pytest.mark.parametrize("act", ["silu", "sigmoid"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_norm_of_heads_with_its_gate(dtype: torch.dtype, tolerance: float, act: Gate) -> None:
    generator = torch.Generator().manual_seed(0)
    y, wide_gate = torch.randn(70, 3, 37, generator=generator), torch.randn(70, 200, generator=generator)
    weight = torch.rand(37, generator=generator)
    gate = wide_gate.to(dtype)[:, 50:161]  # rows of something wider
    want = rms_norm_gate(y.to(dtype).double(), gate.double(), weight.double(), 1e-5, act)
    with torch.no_grad():
        got = row_kernels.rms_norm_gate(y.to(dtype), gate, weight, 1e-5, act)
    assert relative_error(got, want) < tolerance


@needed
def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    model = Mamba2(Mamba2Config(vocab_size=32, d_model=64, n_layers=2, n_heads=4, head_dim=32, d_state=16)).eval()
    packing = Packing([301, 40, 2], n_carried=1, wanted=(0,))
    state = model.init_state(1)[0]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(343, 4, 32, generator=generator)
            with torch.no_grad():
                conv = row_kernels.causal_conv(
                    x.flatten(1), torch.ones(128, 4), torch.ones(128), packing, initial_state=None, silu=True
                )
                gated = row_kernels.silu_multiply(conv.clone(), x.flatten(1))
                mixers = model.layers[0].mixer(torch.randn(343, 64, generator=generator), packing, state, None)
                normed = mlstm_kernels.head_norm_gate(x, conv, torch.ones(128), None, 1e-6)
                gated_heads = row_kernels.rms_norm_gate(x.clone(), conv, torch.ones(32), 1e-6, "silu")
                unit, rate = torch.nn.functional.normalize(x, dim=2), x.sigmoid()
                scanned = rwkv7_kernels.wkv7(
                    x, -0.6 * rate, x, x, unit, rate, packing, initial_state=None, rows=None, chunk_size=None
                )
                mixed = rwkv7_kernels.token_mix(conv, gated, torch.rand(2, 128, generator=generator), torch.bfloat16)
            results.append((conv, gated, mixers[0], mixers[1].ssm, normed, gated_heads, *scanned, *mixed))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", [op for op in OPS if op.name.startswith("ssd")], ids=lambda op: op.name)
def test_ssd_for_every_kind_of_machine(op: Op, dtype: torch.dtype) -> None:
    """The kernel has code for registers of three kinds; all of it that can run here gives the same."""
    packing = Packing([150, 1, 2, 70, 131, 5], n_carried=3, wanted=(0, 4))
    inputs, state = case(op, packing, 0)
    rows = (0, 3, 149, 150, 200, packing.n_tokens - 1)
    y, final = op.sequential(**inputs, packing=packing, initial_state=state)
    low = {name: t.to(dtype) if name in ("x", "B", "C") else t.float() for name, t in inputs.items()}
    options = op.sequential.keywords  # type: ignore[attr-defined]
    for machine in ("narrow", "wide", "paired"):
        for chunk_size in (1, 33, 64):
            for wanted in (None, rows):
                with torch.no_grad():
                    got, got_final = native_ssd(
                        **{"D": None, **low}, **options, dt_softplus=True, packing=packing, rows=wanted,
                        initial_state=state.float(), chunk_size=chunk_size, machine=machine,
                    )  # fmt: skip
                want = y if wanted is None else y[list(wanted)]
                if dtype == torch.float32:
                    assert max(relative_error(got, want), relative_error(got_final, final)) < 1e-5
                else:
                    assert max(distance(got, want), distance(got_final, final)) < 0.01
