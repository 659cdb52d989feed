"""What a device can do at most, measured on the spot: operations of matrix products, and bytes of a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from .timing import synchronize


def matrix_ceiling(device: torch.device, size: int | None = None) -> float:
    """Operations a second of a product of two square matrices, bfloat16 on a GPU and float32 elsewhere.

    Args:
        device: where to multiply.
        size: of the matrices; by default 8192 on a GPU and 1024 elsewhere.
    """
    on_gpu = device.type == "cuda"
    size = size or (8192 if on_gpu else 1024)
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    return 2 * size**3 / _seconds(lambda: matrix @ matrix, device)


def copy_ceiling(device: torch.device, size: int | None = None) -> float:
    """Bytes a second, read and written, of a copy within the device's memory.

    Args:
        device: where to copy.
        size: in bytes; by default 2 GiB on a GPU and 256 MiB elsewhere.
    """
    size = size or (2**31 if device.type == "cuda" else 2**28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        action()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])
