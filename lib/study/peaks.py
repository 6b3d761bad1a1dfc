"""Memory of this process and room on this machine: what it took at the most, what is left."""

import os
from pathlib import Path

import torch

from study.hardware import find_device

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")


def find_room() -> int:
    """Bytes that could be had now: of the GPU where models run on one, else of main memory."""
    if find_device() == "cuda":
        return torch.cuda.mem_get_info()[0]
    if MEMINFO.exists():
        return _read(MEMINFO, "MemAvailable")
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_peak() -> int:
    """Bytes that this process has held at the most, since `reset_peak` or its start.

    On a GPU those of its tensors, else as `read_main_peak`.
    """
    return torch.cuda.max_memory_allocated() if find_device() == "cuda" else read_main_peak()


def read_main_peak() -> int:
    """Bytes of main memory that this process has held at the most.

    `ru_maxrss` is taken only where the system tells nothing better: a child's begins at what its
    parent held.
    """
    if STATUS.exists():
        return _read(STATUS, "VmHWM")
    import resource  # not on every system

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> int:
    """Let `read_peak` start anew; returns the bytes that are held now.

    Raises:
        OSError: the system cannot (all but Linux, without a GPU).
    """
    if find_device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    CLEAR.write_text("5")
    return _read(STATUS, "VmRSS")


def _read(file: Path, name: str) -> int:
    """Bytes that a file of the kernel's tells, which writes kB and means 1024."""
    (line,) = (row for row in file.read_text().splitlines() if row.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
