"""How much of the cores a process and all that it starts get beside the others of this machine (Linux; elsewhere nothing changes).

Theory of operation. A process that starts in the place of one that serves takes seconds of CPU (imports, loading, checking), on the same cores: with the
same weight it makes the other's requests wait. Two things weigh: nice, and where the kernel groups each session by itself (sched(7), "The autogroup
feature") the nice value of the session, which then is the one that counts between processes. Ours lead a session each. The session's may be lowered
and raised again by its owner; nice only with a right to (root, or RLIMIT_NICE), and is left alone without: a process would stay behind for good.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LESS", "set_weight"]

LESS = 5
"""Nice of a process that others should not wait for: a third of the usual weight (sched(7)), so that it still starts on a machine that is full."""
_FULL_RANGE = 20
"""RLIMIT_NICE that reaches nice 0 (getrlimit(2): 20 minus the lowest nice)."""


def set_weight(pid: int, nice: int) -> bool:
    """Give a session's processes and threads a weight.

    Args:
        pid: the leader of the session.
        nice: 0, or `LESS`.

    Returns:
        Whether there is nothing more to do; False: the kernel wants to be asked again later. It changes one session's weight in a tenth of a second,
        of all sessions together, for who has not CAP_SYS_ADMIN (kernel/sched/autogroup.c, proc_sched_autogroup_set_nice).
    """
    taken = True
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
    except BlockingIOError:
        taken = False
    except OSError:  # no such feature, or it has ended
        pass
    if not _may_go_back():
        return taken
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, nice)
    return taken


def _may_go_back() -> bool:
    if not hasattr(resource, "RLIMIT_NICE"):
        return False
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= _FULL_RANGE


def _threads(leader: int) -> Iterator[int]:
    """Every thread of a process and of all below it."""
    pids = [leader]
    while pids:
        with contextlib.suppress(OSError):  # it has ended
            for task in Path(f"/proc/{pids.pop()}/task").iterdir():
                yield int(task.name)
                with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
                    pids += map(int, (task / "children").read_text(encoding="ascii").split())
