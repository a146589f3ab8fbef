"""What figures depend on: the machine, and the versions of what ran."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from thalweg.errors import MissingExtraError

SHORTEST = 0.2
"""Seconds: the system counts processor time in hundredths of them."""

LOADED = 0.15
"""The share of a machine's cores in use by others from which a time is not to be trusted."""

VERSIONS = ("thalweg", "torch", "transformers", "sentence-transformers", "flash-attn", "rwkv", "llama-cpp-python")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, versions, and the load at this moment; with a CUDA device also that."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **{name: version for name in VERSIONS if (version := _version(name))},
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        found |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


class OtherWork:
    """The processor time that other programs, and other systems on the same machine, use from here on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy = _busy_seconds()

    def cores(self) -> float | None:
        """How many cores they have used on average; None after less than `SHORTEST` seconds."""
        seconds = time.perf_counter() - self._began
        if seconds < SHORTEST:
            return None
        return round(max(0.0, (_busy_seconds() - self._busy) / seconds), 2)


def loaded(cores: float | None, of: int | None) -> bool:
    """Whether so many cores in use by others are enough to spoil times."""
    return cores is not None and of is not None and cores >= LOADED * of


def cores_in_use() -> float:
    """Cores that other programs use now, looked at for a moment."""
    work = OtherWork()
    time.sleep(2 * SHORTEST)
    return work.cores() or 0.0


def _busy_seconds() -> float:
    """Seconds of all processors so far that were neither idle nor this process's."""
    counted = psutil().cpu_times()._asdict()
    not_busy = ("idle", "iowait", "guest", "guest_nice")  # guests are counted as user already
    own = os.times()
    return float(sum(value for name, value in counted.items() if name not in not_busy)) - own.user - own.system


def psutil() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("measuring needs psutil: pip install 'thalweg[bench]'") from error
    return psutil


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
