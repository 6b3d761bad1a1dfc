"""The machine that a benchmark ran on, in words that its reader can place."""

import os
import platform
from pathlib import Path

from study.hardware import describe_hardware


def describe_machine() -> str:
    """The processor's name, its cores and kind, and what decides precision: a GPU, or bfloat16."""
    kind = platform.machine()
    return f"{_name_processor() or kind}, {os.cpu_count()} cores, {kind}, {describe_hardware()}"


def _name_processor() -> str:
    """As Linux names it, or else Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
