"""A run of `baichuan-hf train`, or of the baseline that stands beside it, as a row of measurements."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..training import parse_arguments, train
from .rows import append_rows, machine


def record_run(
    results: Path,
    method: str,
    words: Sequence[str],
    *,
    baseline: Callable[[Any, TrainingArguments], dict[str, float]],
    metrics: Sequence[str],
) -> None:
    """Append a row to `results`, and print it.

    Args:
        results: ROWS.csv.
        method: `baseline`, or any other name for what the words train.
        words: those of `baichuan-hf train`.
        baseline: from arguments to metrics, under the names that training gives them.
        metrics: names of the columns, without `eval_`.
    """
    arguments, training_arguments = parse_arguments(words)
    start = time.perf_counter()
    found = (baseline if method == "baseline" else train)(arguments, training_arguments)
    origin = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    row = {
        "date": origin["date"],
        "method": method,
        **{name: f"{found[f'eval_{name}']:.4f}" for name in metrics},
        "seconds": round(time.perf_counter() - start),
        "device": origin["device"],
        "versions": origin["versions"],
        "command": shlex.join(["baichuan-hf", "train", *words]),
    }
    append_rows(results, [row])
    print({name: row[name] for name in ("method", *metrics, "seconds")})
