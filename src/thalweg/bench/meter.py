"""Time and peak memory of calls on a device.

On CUDA: events of the device, and what PyTorch's allocator has given out and reserved. Elsewhere: the wall clock, and
the resident memory of the process, which is why every point of a study has a process of its own.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from thalweg.system.resident import resident_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def resident() -> int:
    """Bytes that this process has in memory now, or its peak where the system only tells that."""
    return resident_bytes() or 0


def peak_rss() -> int:
    """Bytes that this process has had in memory at its worst moment, or since `forget_peak`.

    Not `ru_maxrss` on Linux: a new process inherits the peak of the one that started it.
    """
    return _status("VmHWM") or _most_resident()


def forget_peak() -> None:
    """Let `peak_rss` begin anew, where the system can (Linux); elsewhere it stays that of the whole process."""
    if CLEAR.exists():
        try:
            CLEAR.write_text("5")
        except OSError:  # a container may forbid it
            return


def _status(field: str) -> int | None:
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _most_resident() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Meter:
    """Measures calls on one device.

    Raises:
        RuntimeError: torch cannot use the device.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self._before = 0
        if self.cuda:
            torch.cuda.set_device(self.device)
            torch.cuda.init()

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Time of one call, to the end of what it has started on the device."""
        self.synchronize()
        if not self.cuda:
            begun = time.perf_counter()
            call()
            self.synchronize()
            return time.perf_counter() - begun
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        self.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def reset(self) -> dict[str, int]:
        """Forget earlier peaks; the bytes that are in use now."""
        self.synchronize()
        forget_peak()
        self._before = resident()
        now = {"rss_before": self._before}
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            now["cuda_allocated_before"] = torch.cuda.memory_allocated(self.device)
        return now

    def peak(self) -> dict[str, int]:
        """The most bytes since `reset`."""
        # The kernel counts pages by thread and adds these up late, for the peak later than for what is resident now.
        found = {"peak_rss": max(peak_rss(), self._before)}
        if self.cuda:
            found["cuda_allocated"] = torch.cuda.max_memory_allocated(self.device)
            found["cuda_reserved"] = torch.cuda.max_memory_reserved(self.device)
        return found
