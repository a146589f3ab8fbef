"""Processes forked from one that had computed: threads do not live on in them, and whoever waits for one hangs."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Protocol

import torch

log = logging.getLogger("thalweg")


class Reset(Protocol):
    """What has to begin anew in a forked process: locks that a thread may have held, work that it had under way."""

    def reset(self) -> None: ...


_to_reset: weakref.WeakSet[Reset] = weakref.WeakSet()
_is_forked = False


def reset_when_forked(each: Reset) -> None:
    """Call `reset` in every process that is forked from this one."""
    _to_reset.add(each)


def compute_in_forked_process() -> None:
    """Before PyTorch computes: in a forked process with one thread, as its pool of threads is not there (it hangs)."""
    global _is_forked
    if _is_forked and torch.get_num_threads() > 1:
        log.warning(
            "this process was forked, and PyTorch's threads are gone in it: it computes with one instead of %d. Start "
            "processes with multiprocessing's 'spawn' or 'forkserver' for more",
            torch.get_num_threads(),
        )
        torch.set_num_threads(1)
    _is_forked = False


def _after_fork() -> None:
    global _is_forked
    _is_forked = True
    for each in list(_to_reset):
        each.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
