"""Run every native kernel at odd sizes under AddressSanitizer and UndefinedBehaviorSanitizer.

    python scripts/check_kernels.py

Compiles the kernels once more, with the sanitizers, into a temporary folder, and runs all ops of the tests' registry on
them in a process of its own, whose tensors have guarded edges. Exit code 0: nothing was found; 77: no g++ or no
sanitizer.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "-O1",
    "-g1",
    "-std=c++17",
    "-Wno-psabi",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-sanitize-recover=undefined",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=alignment"]
MISSING = 77
LENGTHS = ([1], [37, 1, 5, 130, 2])


def main() -> int:
    compiler = shutil.which("g++")
    runtime = (
        compiler
        and subprocess.run(
            [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    if compiler is None or not runtime or not Path(runtime).is_file():
        print("g++ with libasan is not installed")
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        objects = []
        for source in sorted((ROOT / "src" / "thalweg" / "kernels" / "native").glob("*.cpp")):
            objects.append(str(Path(folder) / f"{source.stem}.o"))
            command = [compiler, *FLAGS, *SANITIZERS, "-fopenmp", "-DCLONES=", "-c", str(source), "-o", objects[-1]]
            subprocess.run(command, check=True)
        subprocess.run([compiler, "-shared", *SANITIZERS, *objects, "-o", str(library)], check=True)
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
        settings = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": path}
        child = [sys.executable, __file__, str(library)]
        return subprocess.run(child, env={**os.environ, **settings}, check=False).returncode


def run_all(library: str) -> None:
    """All ops and models without gradients, in both dtypes, on every layout."""
    import torch
    from tests.ops.harness import case, parts, rebuild
    from tests.ops.registry import OPS

    from thalweg.kernels.native import library as native
    from thalweg.kernels.native.ssd import MACHINES
    from thalweg.kernels.native.ssd import ssd as native_ssd
    from thalweg.ops.quantized import Int8, int8_linear
    from thalweg.packing import Packing

    loaded = ctypes.CDLL(library)
    native._library = lambda: (loaded, "")  # type: ignore[assignment]
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    runs = 0
    for lengths in LENGTHS:
        packing = Packing(lengths, n_carried=len(lengths) // 2, wanted=range(0, len(lengths), 2))
        for machine, op in ((m, op) for m in MACHINES for op in OPS if op.name.startswith("ssd")):
            inputs, state = case(op, packing, 0)
            for dtype in (torch.float32, torch.bfloat16):
                low = {key: t.to(dtype) if key in ("x", "B", "C") else t.float() for key, t in inputs.items()}
                for rows in (None, (packing.n_tokens - 1,)):
                    native_ssd(
                        **{"D": None, **low}, packing=packing, dt_softplus=True, dt_limit=(0.0, float("inf")),
                        initial_state=state.float(), rows=rows, chunk_size=None, machine=machine,
                    )  # fmt: skip
                    runs += 1
        for op in OPS:
            inputs, state = case(op, packing, 0)
            name = "dispatched" if "dispatched" in op.fast else "packed"
            for dtype in (torch.float32, torch.bfloat16):
                low = {key: t.to(dtype) if t.ndim > 1 else t.float() for key, t in inputs.items()}
                carried = rebuild(state, [t.float() for t in parts(state)])
                op.fast[name](**low, packing=packing, initial_state=carried)
                op.fast[name](**low, packing=packing, initial_state=None)
                runs += 2
        for model in models():
            for dtype in (torch.float32, torch.bfloat16):
                tokens = torch.arange(packing.n_tokens) % 20
                for rows in (None, (packing.n_tokens - 1,)):
                    model.to(dtype)(tokens, packing, model.init_state(packing.n_carried), rows)
                    runs += 1
    for rows, inputs, outputs in ((1, 1, 1), (37, 33, 17), (300, 40, 5)):
        for dtype in (torch.float32, torch.bfloat16):
            x, out = torch.randn(rows, inputs, dtype=dtype), torch.empty(rows, outputs, dtype=dtype)
            int8_linear(x, [(Int8(torch.randn(outputs, inputs)), torch.randn(outputs), out)])
            runs += 1
    print(f"{runs} runs, nothing found")


def models() -> list[object]:
    """Odd widths, for the kernels between the products."""
    from thalweg.models.mamba2 import Mamba2, Mamba2Config
    from thalweg.models.rwkv7 import RWKV7, RWKV7Config
    from thalweg.models.xlstm import XLSTM, XLSTMConfig

    ranks = {f"rank_{name}": 3 for name in "wavg"}
    return [
        XLSTM(XLSTMConfig(vocab_size=20, d_model=17, n_layers=2, n_heads=3, d_qk=15, d_v=21, d_ffn=37)).eval(),
        RWKV7(RWKV7Config(vocab_size=20, d_model=33, n_layers=2, head_dim=11, d_value=39, d_ffn=41, **ranks)).eval(),
        Mamba2(Mamba2Config(vocab_size=20, d_model=17, n_layers=2, n_heads=3, head_dim=7, d_state=5)).eval(),
        Mamba2(
            Mamba2Config(20, 17, 2, n_heads=4, head_dim=37, d_state=9, n_groups=2, d_conv=3, conv_bias=False)
        ).eval(),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_all(sys.argv[1])
    else:
        sys.exit(main())
