"""What is published: the source archive, and the wheel that is built from nothing but it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import thalweg
from thalweg.kernels import native

ROOT = Path(__file__).parent.parent
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
USE = """
import sys, numpy as np, thalweg
from thalweg.kernels import native

assert thalweg.__file__.startswith(sys.argv[1]), thalweg.__file__
np.save(sys.argv[2], thalweg.load().encode(["a text", "another one"]))
print(native.missing())
"""


def build(*arguments: str, cwd: Path, **environment: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=cwd, env=os.environ | environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    build("-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=copy)
    (found,) = (copy / "dist").iterdir()
    return found


@pytest.mark.parametrize("compiler", [True, False], ids=["with a compiler", "without a compiler"])
def test_a_wheel_out_of_the_source_archive_embeds(archive: Path, tmp_path: Path, compiler: bool) -> None:
    tools = {} if compiler else {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    build(*command, str(archive), cwd=tmp_path, **tools)
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    page = Path("thalweg", "serve", "page")
    names = {path.name for path in (ROOT / "src" / page).iterdir()}
    assert {path.name for path in (site / page).iterdir()} == names >= {"index.html", "page.js", "page.css"}
    arguments = ["-c", USE, str(site), str(tmp_path / "vectors.npy")]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    if compiler:
        assert done.stdout.strip() == native.missing()
    else:
        assert "install a C++ compiler" in done.stdout
    expected = thalweg.load().encode(["a text", "another one"])
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)
