"""The allocator of a process: as it was where thalweg is imported, fixed where the process is thalweg's own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from thalweg.errors import InvalidInputError
from thalweg.system import malloc

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")

ENCODE = """
import ctypes
import thalweg

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks "
                "fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = Mallinfo

thalweg.load().encode(["a text " * 3000])

# Above LARGE and below 32 MiB: once such a block is freed, glibc's own threshold is above it.
block = 31 << 20
libc.free(libc.malloc(block))
before = libc.mallinfo2().hblks
held = [libc.malloc(block) for _ in range(20)]
print(libc.mallinfo2().hblks - before)
"""


def mappings(**environment: str) -> int:
    """In a process that has encoded: how many of 20 more blocks of 31 MiB are mappings of their own."""
    clean = {name: value for name, value in os.environ.items() if name != malloc.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", ENCODE], env=clean | environment, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@glibc
@pytest.mark.subprocess
def test_a_program_that_imports_thalweg_keeps_its_allocator() -> None:
    assert mappings() == mappings(THALWEG_MALLOC="0") == 0


@glibc
@pytest.mark.subprocess
def test_the_thresholds_are_fixed_where_they_are_asked_for() -> None:
    assert mappings(THALWEG_MALLOC="1") > 10  # what does not fit into the heap that is there


@pytest.mark.subprocess
@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"THALWEG_MALLOC": "0"}, "0")])
def test_the_command_line_asks_for_it(given: dict[str, str], expected: str) -> None:
    program = "import os, sys\nfrom thalweg.cli.app import main\nsys.argv = ['thalweg', '--version']\n"
    program += "try: main()\nfinally: print(os.environ['THALWEG_MALLOC'])"
    clean = {name: value for name, value in os.environ.items() if name != malloc.SWITCH}
    done = subprocess.run([sys.executable, "-c", program], env=clean | given, capture_output=True, text=True)
    assert done.stdout.split()[-1] == expected


@pytest.mark.parametrize("chosen", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_thresholds_that_the_user_has_chosen_stay(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(malloc.SWITCH, "1")
    monkeypatch.setenv(chosen, "65536")
    assert malloc.fix_thresholds.__wrapped__() is False


def test_what_is_neither_0_nor_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(malloc.SWITCH, "yes")
    with pytest.raises(InvalidInputError, match="THALWEG_MALLOC must be 0 or 1, got 'yes'"):
        malloc.fix_thresholds.__wrapped__()


def test_where_nothing_is_fixed_nothing_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        pytest.fail("the allocator of the process is touched")

    monkeypatch.setattr(malloc, "fix_thresholds", lambda: False)
    monkeypatch.setattr(malloc, "_give_back", forbidden)
    monkeypatch.setattr(malloc, "_take", forbidden)
    malloc.reserve([1 << 30, 1 << 20])
