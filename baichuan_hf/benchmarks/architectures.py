"""`baichuan-hf bench architectures`: which component learns better, at equal parameters, on the same text and seeds.

Three files of rows: ROWS.csv holds one row per run, ROWS.curves.csv their training losses, ROWS.speed.csv the time of
a step of each variant. Runs that ROWS.csv holds are not repeated.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..evaluation.size import build_on_meta, count_parameters
from ..model.configuration_baichuan import BaichuanConfig
from .choices import check_choices
from .learning import Corpus, Learner, batches
from .rows import append_rows, machine, read_rows
from .timing import interleaved, milliseconds
from .variants import Settings, Variant, build_config, list_variants


# Steps that one point of a curve is the mean of.
CURVE_STEPS = 25
# Timing: steps of each variant in a round.
STEPS_PER_ROUND = 5


class Run(NamedTuple):
    """One model to train, and what it is known by in ROWS.csv."""

    key: str
    learning_rate: float
    seed: int


def companion(rows: Path, kind: str) -> Path:
    """ROWS.csv -> ROWS.kind.csv."""
    return rows.with_suffix(f".{kind}{rows.suffix}")


def compare(
    rows: Path,
    corpus: Corpus,
    settings: Settings,
    *,
    axes: Sequence[str] | None = None,
    device: torch.device,
    workers: int = 1,
    rounds: int = 15,
    max_seconds: float = math.inf,
    command: str = "",
    report: Callable[[str], None] = print,
) -> list[str]:
    """Train what ROWS.csv lacks and append it, run by run.

    Args:
        rows: ROWS.csv.
        corpus: what to learn.
        settings: of every run.
        axes: components to compare; by default all.
        device: where to train.
        workers: processes that train at the same time.
        rounds: of timing the steps, over the variants of a component in turns; 0 leaves it out.
        max_seconds: start no run after so long.
        command: written into every row.
        report: called with a line for each finished run.

    Returns:
        The runs that failed, with the reason.

    Raises:
        ValueError: ROWS.csv holds runs of other settings, or there is no such axis.
    """
    start = time.monotonic()
    variants = select_variants(settings, axes)
    written = _describe(settings)
    if any(row["settings"] != written for row in read_rows(rows)):
        raise ValueError(f"{rows}: holds runs of other settings: name another file, or repeat those settings.")
    configs = {variant.key: build_config(settings, variant) for variant in variants.values()}
    origin = {**machine(device), "command": command}
    timed = {row["variant"] for row in read_rows(companion(rows, "speed"))}
    for axis in dict.fromkeys(variant.axis for variant in variants.values() if variant.changes):
        group = [variant for variant in list_variants(settings) if variant.axis == axis]
        if rounds and not timed.issuperset(variant.key for variant in group if variant.changes):
            report(f"timing {axis}")
            chosen = {variant.key: configs[variant.key] for variant in group}
            append_rows(companion(rows, "speed"), time_steps(chosen, corpus, settings, device, origin, rounds))

    failed: list[str] = []
    tried: set[Run] = set()
    running: dict[Future, Run] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _initialize, (corpus, settings, str(device))) as pool:
        while True:
            waiting = [run for run in missing_runs(list(variants), settings, read_rows(rows)) if run not in tried]
            if time.monotonic() - start < max_seconds:
                for run in waiting[: workers - len(running)]:
                    tried.add(run)
                    running[pool.submit(_train, run, configs[run.key])] = run
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                if error := future.exception():
                    failed.append(f"{_name(run)}: {error!r}")
                    report(f"failed: {failed[-1]}")
                    continue
                result, curve = future.result()
                row = {**_identity(run, configs[run.key]), **result, "settings": written, **origin}
                append_rows(companion(rows, "curves"), curve)
                append_rows(rows, [row])
                report(f"{_name(run)}: {result['bits_per_byte']} bits per byte")
    return failed


def select_variants(settings: Settings, axes: Sequence[str] | None) -> dict[str, Variant]:
    """By key; each baseline once, and first."""
    variants = list_variants(settings)
    known = list(dict.fromkeys(variant.axis for variant in variants))
    check_choices("axis", axes or (), known)
    chosen = [variant for variant in variants if not axes or variant.axis in axes]
    return {variant.key: variant for variant in sorted(chosen, key=lambda variant: bool(variant.changes))}


def missing_runs(keys: Sequence[str], settings: Settings, rows: list[dict[str, str]]) -> Iterator[Run]:
    """What is still to train, by variant: every rate with the first seed, then the best one with the other seeds."""
    found = {Run(row["variant"], float(row["learning_rate"]), int(row["seed"])): row for row in rows}
    for key in keys:
        first = [Run(key, rate, 0) for rate in settings.learning_rates]
        lacking = [run for run in first if run not in found]
        if not lacking:
            best = min(first, key=lambda run: loss_of(found[run]))
            others = [best._replace(seed=seed) for seed in range(1, settings.seeds)]
            lacking = [run for run in others if run not in found]
        yield from lacking


def loss_of(row: dict[str, str]) -> float:
    """Bits per byte, infinite where training diverged."""
    value = float(row["bits_per_byte"])
    return math.inf if math.isnan(value) else value


def time_steps(
    configs: dict[str, BaichuanConfig],
    corpus: Corpus,
    settings: Settings,
    device: torch.device,
    origin: dict[str, str],
    rounds: int,
) -> list[dict[str, Any]]:
    """Milliseconds of a training step of each variant and of the baseline, which comes first in `configs`: medians
    over rounds in which all have their turn."""
    batch = batches(corpus, replace(settings, steps=1), 0, device)[0]
    learners = {
        key: Learner(config, settings, learning_rate=0.0, seed=0, device=device) for key, config in configs.items()
    }
    actions = {key: partial(learner.step, batch) for key, learner in learners.items()}
    times = interleaved(actions, device, rounds=rounds, repeats=STEPS_PER_ROUND)
    baseline = next(iter(times))
    return [
        {
            "variant": key,
            **milliseconds(seconds),
            "ms_baseline": milliseconds(times[baseline])["ms"],
            "cuda_graph": learners[key].captures,
            "settings": _describe(settings),
            **origin,
        }
        for key, seconds in times.items()
        if key != baseline
    ]


_worker: dict[str, Any] = {}


def _initialize(corpus: Corpus, settings: Settings, device: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.update(corpus=corpus, settings=settings, device=torch.device(device))
    if device == "cpu":
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A pool whose parent was killed would wait for work for ever, and hold the device's memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(run: Run, config: BaichuanConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """In a worker: the results of a run, and its curve."""
    corpus, settings, device = _worker["corpus"], _worker["settings"], _worker["device"]
    start = time.perf_counter()
    learner = Learner(config, settings, learning_rate=run.learning_rate, seed=run.seed, device=device)
    losses = torch.zeros(settings.steps, device=device)
    for index, batch in enumerate(batches(corpus, settings, run.seed, device)):
        losses[index] = learner.step(batch)
    values = losses.tolist()
    points = range(0, len(values), CURVE_STEPS)
    curve = [
        {
            "variant": run.key,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "step": point + len(part),
            "loss": f"{statistics.fmean(part):.4f}",
        }
        for point in points
        if (part := values[point : point + CURVE_STEPS])
    ]
    result: dict[str, Any] = {"train_loss": curve[-1]["loss"]}
    for factor, length in zip((1, 2, 4, 8), settings.eval_lengths, strict=True):
        name = "bits_per_byte" if factor == 1 else f"bits_per_byte_{factor}x"
        fits = length <= config.max_position_embeddings
        result[name] = f"{learner.bits_per_byte(corpus, length):.4f}" if fits else ""
    result["seconds"] = f"{time.perf_counter() - start:.1f}"
    return result, curve


def _identity(run: Run, config: BaichuanConfig) -> dict[str, Any]:
    counts = count_parameters(build_on_meta(config))
    return {
        "variant": run.key,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "parameters": counts["total"],
        "active_parameters": counts["active"],
        "intermediate_size": config.intermediate_size,
    }


def _name(run: Run) -> str:
    return f"{run.key}, rate {run.learning_rate:g}, seed {run.seed}"


def _describe(settings: Settings) -> str:
    # Without what may grow later.
    return json.dumps(
        {name: value for name, value in asdict(settings).items() if name not in ("seeds", "learning_rates")}
    )
