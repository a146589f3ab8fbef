"""The optional native kernels; everything else is in pyproject.toml.

Compiled against nothing but the C++ standard library. OpenMP's symbols stay open: they are PyTorch's own at run time,
so that both share one set of threads. Without a compiler the install goes on and PyTorch does the work.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-Wno-psabi"]  # how vectors are passed to functions: those that take any are inlined


class SideBySide(build_ext):
    """Compiles all sources at once."""

    def build_extensions(self):
        compile_some = self.compiler.compile

        def compile_all(sources, **settings):
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_some([source], **settings), sources)
                return [path for of_one in objects for path in of_one]

        self.compiler.compile = compile_all
        super().build_extensions()


setup(
    cmdclass={"build_ext": SideBySide},
    ext_modules=[
        Extension(
            "thalweg.kernels.native._kernels",
            sources=[
                f"src/thalweg/kernels/native/{name}.cpp"
                for name in ("kernels", "mlstm", "quantize", "rwkv7", "segment", "ssd")
            ],
            depends=["src/thalweg/kernels/native/common.hpp", "src/thalweg/kernels/native/rows.hpp"],
            extra_compile_args=[*FLAGS, *(["-fopenmp"] if sys.platform == "linux" else [])],
            language="c++",
            optional=True,
        )
    ],
)
