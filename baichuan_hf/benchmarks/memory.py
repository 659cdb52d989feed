"""`baichuan-hf bench memory`: what a text of so many tokens takes, of memory and time: to read, to go on, to learn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .choices import SHAPES, check_choices
from .peak import in_a_process, peak_memory
from .random_models import inference_dtype, random_config, random_model
from .rows import append_rows, import_pyplot, machine, read_rows, rows_table
from .timing import interleaved, milliseconds


LENGTHS = tuple(1024 * 2**power for power in range(6))
POSITIONS = ("rope", "alibi")
# What is measured of a model, and what its peak is on top of: all have the weights, training has gradients, too.
PASSES = {"prefill": "prefill with a cache", "decode": "one token behind a cache", "training": "a training step"}


def measure_memory(
    rows: Path,
    *,
    shape: str = "1b",
    lengths: Sequence[int] = LENGTHS,
    positions: Sequence[str] = POSITIONS,
    passes: Sequence[str] = tuple(PASSES),
    rounds: int = 5,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every kind of positions, pass and length that ROWS.csv lacks, of one text; what does not fit
    into memory has a row without numbers. bfloat16 on a GPU, else float32.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        lengths: tokens of the text.
        positions: `rope`, `alibi`.
        passes: names in PASSES; `training` is forward and backward with gradient checkpointing.
        rounds: calls of which the median counts.
        device: where to run; on a CPU, where memory is that of a process, each row has a process of its own.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape, pass or kind of positions.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("positions", positions, POSITIONS)
    check_choices("case", passes, PASSES)
    origin = {**machine(device), "command": command}
    keys = ("shape", "positions", "pass", "tokens")
    done = {tuple(row[key] for key in keys) for row in read_rows(rows)}
    for kind in positions:
        for phase in passes:
            for length in sorted(lengths):
                if (shape, kind, phase, str(length)) in done:
                    continue
                measure = functools.partial(_measure, shape, kind, phase, length, rounds, device)
                found = measure() if device.type == "cuda" else in_a_process(measure)
                numbers = found or {"ms": "", "ms_p20": "", "ms_p80": "", "peak_mib": ""}
                row = {"shape": shape, "positions": kind, "pass": phase, "tokens": length, **numbers}
                append_rows(rows, [{**row, **origin}])
                took = f"{row['ms']} ms, {row['peak_mib']} MiB" if found else "out of memory"
                report(f"{shape}, {kind}, {phase}, {length} tokens: {took}")


def memory_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        "shape": "shape",
        "positions": "positions",
        "pass": "pass",
        "tokens": "tokens",
        "ms": "ms",
        "peak_mib": "peak MiB",
    }
    return rows_table(rows, columns)


def draw_memory(rows: Path, picture: Path) -> None:
    """Time and peak memory over the length, all axes logarithmic: what is linear has the slope of the dotted line."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(2, len(PASSES), figsize=(11, 6.5), sharex=True, layout="constrained")
    found = read_rows(rows)
    curves = dict.fromkeys((row["shape"], row["positions"]) for row in found)
    for i, (column, name) in enumerate({"ms": "ms", "peak_mib": "peak memory, MiB"}.items()):
        for j, phase in enumerate(PASSES):
            axis = axes[i, j]
            for curve in curves:
                points = sorted(
                    (int(row["tokens"]), float(row[column]))
                    for row in found
                    if (row["shape"], row["positions"], row["pass"]) == (*curve, phase) and float(row[column] or 0) > 0
                )
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=", ".join(curve))
                    first, last = points[0], points[-1]
                    axis.plot(
                        (first[0], last[0]),
                        (last[1] * first[0] / last[0], last[1]),
                        color="grey",
                        linestyle="dotted",
                        linewidth=0.8,
                    )
            axis.set(xscale="log", yscale="log", title=PASSES[phase], ylabel=name if j == 0 else "")
            ticks = sorted({int(row["tokens"]) for row in found})
            axis.set_xticks(ticks, [f"{tick / 1024:g}k" for tick in ticks])
            axis.minorticks_off()
    axes[0, 0].legend()
    figure.supxlabel("tokens")
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def _measure(
    shape: str, positions: str, phase: str, length: int, rounds: int, device: torch.device
) -> dict[str, Any] | None:
    """Times, and the MiB that a call takes on top of weights (and gradients); None: there is not so much memory."""
    try:
        model = _model(shape, positions, phase == "training", device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_memory(device)
        text = torch.randint(3, SHAPES[shape]["vocab_size"], (1, length), device=device)
        action = {"prefill": _prefill, "decode": _decode, "training": _train}[phase](model, text)
        action()
        peak = peak_memory(device) - before
        seconds = interleaved({phase: action}, device, rounds=rounds)[phase]
        return {**milliseconds(seconds), "peak_mib": round(peak / 2**20)}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


@functools.lru_cache(maxsize=1)
def _model(shape: str, positions: str, training: bool, device: torch.device) -> PreTrainedModel:
    """With gradients to be, in training: what accumulates there is no part of what a text takes."""
    config = random_config(SHAPES[shape], length=max(LENGTHS), alibi=positions == "alibi")
    model = random_model(config, dtype=inference_dtype(device), device=device).train(training)
    if training:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.skip_logits = True
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    return model


def _prefill(model: PreTrainedModel, text: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def read() -> None:
        model(input_ids=text, use_cache=True, logits_to_keep=1)

    return read


def _decode(model: PreTrainedModel, text: Tensor) -> Callable[[], object]:
    config = model.config
    cache = DynamicCache(config=config)
    size = (1, config.num_key_value_heads, text.shape[1], config.head_dim)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(size, device=text.device, dtype=model.dtype) for _ in range(2))
        cache.update(keys, values, layer)

    @torch.inference_mode()
    def write() -> None:
        model(input_ids=text[:, :1], past_key_values=cache, use_cache=True)

    return write


def _train(model: PreTrainedModel, text: Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=text, labels=text, use_cache=False).loss.backward()
