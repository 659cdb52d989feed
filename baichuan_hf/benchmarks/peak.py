"""The most memory that was ever in use."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch


Result = TypeVar("Result")


def in_a_process(measure: Callable[[], Result]) -> Result:
    """Call in a process of its own: a CPU's memory is only known as the most that a process ever had."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure).result()


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a CUDA device since its statistics were reset, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # What Linux says here begins with the process, unlike getrusage, which counts the one that it came from.
    if (status := Path("/proc/self/status")).exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
