"""Times that can be compared: what is compared takes turns, so that a slow minute of the machine slows all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(
    actions: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each action, one value per round; a round before them warms up.

    Args:
        actions: by name; each is called `repeats` times in a row, in every round.
        device: that they run on.
        rounds: in which every action has its turn.
        repeats: calls that one value is the mean of.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            synchronize(device)
            if turn:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def append_profile(file: Path, title: str, action: Callable[[], object], device: torch.device) -> None:
    """Append to a text file what the time of a call went into: kernels on a GPU, else operations."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        action()
        synchronize(device)
    table = found.key_averages().table(
        sort_by=f"self_{device.type}_time_total", row_limit=15, max_name_column_width=70
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as text:
        text.write(f"{title}\n{table}\n")


def times_as_fast(times: Mapping[str, list[float]], seconds: list[float]) -> str:
    """How many times as fast as the first of them."""
    return f"{statistics.median(next(iter(times.values()))) / statistics.median(seconds):.3f}"


def milliseconds(seconds: list[float]) -> dict[str, str]:
    """The columns `ms`, the median, and `ms_p20` and `ms_p80` around it, never beyond the values."""
    low, *_, high = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else seconds * 2
    values = {"ms": statistics.median(seconds), "ms_p20": low, "ms_p80": high}
    return {name: f"{1000 * value:.3f}" for name, value in values.items()}
