"""Threads of native libraries within a container's CPU limit.

OpenMP (XGBoost, LightGBM, PyTorch, scikit-learn) and OpenBLAS (SciPy) make a thread for each core that the kernel shows, which is the node's
number, not the container's: 64 threads that share half a CPU are throttled together. They read these variables when they are
loaded, which is after the command line is read. A model's own number (`--nthread`) goes to its framework by the framework's own way.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping

from ...settings import cpu_limit

__all__ = ["POOLS", "bound_pools"]

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""OpenMP 5.2, 21.2; OpenBLAS and oneMKL, "Environment variables"."""


def bound_pools(environment: MutableMapping[str, str], *, cores: int) -> None:
    """Set what is not set where the CPU limit is under the cores of this process, and say what the limit is.

    Args:
        environment: usually `os.environ`, so that libraries and child processes see it.
        cores: that this process may run on.
    """
    limit = cpu_limit()
    threads = max(1, int(limit))
    if limit < cores:
        for variable in POOLS:
            environment.setdefault(variable, str(threads))
    words = "1 thread" if threads == 1 else f"{threads} threads"
    logging.getLogger("serinus").info("%g CPUs: %s of a predict, unless --nthread says otherwise", limit, words)
