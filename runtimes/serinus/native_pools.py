"""Threads of native libraries within a container's CPU limit.

Theory of operation. OpenMP (XGBoost, LightGBM, PyTorch, scikit-learn) and OpenBLAS (NumPy, SciPy) make a thread for each core that the kernel
shows, which is the node's number, not the container's: 64 threads that share half a CPU are throttled together. They read these variables when
they are loaded. NumPy is loaded by nearly every import of this package, so where this process is the command `serinus serve` they are set by
the import of this module, which comes first; nothing is set in any other process that imports serinus. A model's own number (`--nthread`)
goes to its framework by the framework's own way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from .quiet_interrupt import command_words

__all__ = ["POOLS", "bound_pools", "cpu_limit", "describe_limit"]

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""OpenMP 5.2, 21.2; OpenBLAS and oneMKL, "Environment variables"."""


def cpu_limit() -> float:
    """CPUs that this process may use: the cgroup's quota where there is one, else the affinity mask.

    Returns:
        Cores, a fraction where the container's limit is one (`cpu: 500m` gives 0.5).
    """
    available = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]  # cgroup v2
        if quota != "max":
            return min(available, int(quota) / int(period))
    except (OSError, ValueError):
        pass
    try:
        root = Path("/sys/fs/cgroup/cpu")  # cgroup v1
        quota_us, period_us = (
            int((root / "cpu.cfs_quota_us").read_text()),
            int((root / "cpu.cfs_period_us").read_text()),
        )
        if quota_us > 0 and period_us > 0:
            return min(available, quota_us / period_us)
    except (OSError, ValueError):
        pass
    return available


def bound_pools(environment: MutableMapping[str, str], *, cores: int) -> None:
    """Set what is not set where the CPU limit is under the cores of this machine.

    Args:
        environment: usually `os.environ`, so that libraries and child processes see it.
        cores: that the kernel shows.
    """
    limit = cpu_limit()
    if limit < cores:
        for variable in POOLS:
            environment.setdefault(variable, str(max(1, int(limit))))


def describe_limit(limit: float) -> str:
    """Say what a CPU limit means for predicts, for the log."""
    threads = max(1, int(limit))
    words = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{limit:g} CPUs: {words} of a predict, unless --nthread says otherwise"


if command_words(sys.orig_argv[1:])[:1] == ["serve"]:
    bound_pools(os.environ, cores=os.cpu_count() or 1)
