"""The optional native kernels; everything else is in pyproject.toml.

Compiled against nothing but the C++ standard library. OpenMP's symbols stay open: they are PyTorch's own at run time,
so that both share one set of threads. Without a compiler the install goes on and PyTorch does the work.
"""

import sys

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-Wno-psabi"]  # how vectors are passed to functions: those that take any are inlined

setup(
    ext_modules=[
        Extension(
            "thalweg.native._kernels",
            sources=[f"src/thalweg/native/{name}.cpp" for name in ("kernels", "mlstm", "quantize", "rwkv7", "ssd")],
            depends=["src/thalweg/native/common.hpp", "src/thalweg/native/rows.hpp"],
            extra_compile_args=[*FLAGS, *(["-fopenmp"] if sys.platform == "linux" else [])],
            language="c++",
            optional=True,
        )
    ]
)
