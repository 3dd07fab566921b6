"""How much memory this process and those that it started hold, and how much their container may: from /proc and the cgroup.

Memory is what the kernel cannot take back: anonymous and shared pages that are resident (proc(5), status, RssAnon and RssShmem). Pages of files, such as
weights that are mapped, are the page cache's. What several processes share counts for each; processes of models are spawned, not forked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MemoryReading", "container_limit", "read_memory", "reserved_on_gpus"]

_NO_LIMIT = 1 << 60
"""cgroup v1 writes "none" as the largest number of pages."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes at one moment."""

    own: int
    """Memory of this process."""
    children: int = 0
    """That of the processes below it: those of models."""
    gpu: int = 0
    """What PyTorch's allocator holds of all GPUs for this process; 0 where it is not in use."""


def container_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Give the memory that this container may have; None: all of the machine's.

    Args:
        root: where the cgroup file system is mounted; a container sees its own group there.
    """
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() and int(text) < _NO_LIMIT else None
    return None


def read_memory(pid: int, root: Path = Path("/proc")) -> MemoryReading:
    """Read what a process and its descendants hold now.

    Args:
        pid: of the process.
        root: where proc is mounted.
    """
    below = _descendants(pid, root)
    return MemoryReading(_resident(pid, root), sum(_resident(one, root) for one in below), reserved_on_gpus())


def reserved_on_gpus(modules: dict[str, Any] | None = None) -> int:
    """Give what PyTorch's allocator has reserved, where a model here has loaded PyTorch and uses CUDA.

    Args:
        modules: those that are loaded; None: `sys.modules`.
    """
    torch = (sys.modules if modules is None else modules).get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return 0
        return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
    except Exception:  # noqa: BLE001 # it is being imported, or the driver is gone: then it holds nothing that counts
        return 0


def _resident(pid: int, root: Path) -> int:
    try:
        lines = (root / str(pid) / "status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    except (OSError, IndexError, ValueError):  # it has ended
        return 0


def _descendants(pid: int, root: Path) -> list[int]:
    """Processes below one (proc(5), task/[tid]/children); none where the kernel does not tell."""
    found: list[int] = []
    for file in (root / str(pid) / "task").glob("*/children"):
        try:
            children = [int(word) for word in file.read_text().split()]
        except (OSError, ValueError):
            continue
        for child in children:
            found += [child, *_descendants(child, root)]
    return found
