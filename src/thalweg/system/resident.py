"""How much memory this process holds, as the system counts it. Imports nothing heavy."""

from __future__ import annotations

import os
import sys


def resident_bytes() -> int | None:
    """Memory that this process holds now, or its peak where the system only tells that; None where it tells nothing."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
