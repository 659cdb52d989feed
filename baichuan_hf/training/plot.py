"""The pictures of a run, its losses and learning rate over the steps, and of a search, what its trials gave."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)


def plot_history(history: list[dict[str, Any]], file: Path) -> None:
    """Draw `log_history` of a TrainerState into a PNG file; without matplotlib or anything to draw, say so."""
    losses = {
        label: [(entry["step"], entry[key]) for entry in history if key in entry]
        for label, key in (("training loss", "loss"), ("evaluation loss", "eval_loss"))
    }
    rates = [(entry["step"], entry["learning_rate"]) for entry in history if "learning_rate" in entry]
    if not losses["training loss"] or not _has_matplotlib("the loss"):
        return
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for label, points in losses.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 30 else None, markersize=3)
    if rates:
        right = axes.twinx()
        right.plot(*zip(*rates, strict=True), color="grey", linewidth=0.8, linestyle="--", label="learning rate")
        right.set(ylabel="learning rate", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(file, dpi=120)


def plot_trials(trials: Sequence[dict[str, Any]], file: Path, *, metric: str, best: int) -> None:
    """Draw `metric` of the trials in their order, and over each value that was tried, into a PNG file.

    Args:
        trials: what was tried, by name, and `metric`, in each.
        file: PNG.
        metric: name of the measure.
        best: index of the trial to mark.
    """
    if not _has_matplotlib("the trials"):
        return
    from matplotlib.figure import Figure

    names = [name for name in trials[best] if name != metric]
    figure = Figure(figsize=(3 * (1 + len(names)), 3), layout="constrained")
    columns = {"trial": list(range(len(trials)))} | {name: [trial[name] for trial in trials] for name in names}
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(grid, columns.items(), strict=True):
        numbers = all(isinstance(value, int | float) for value in values)
        values = values if numbers else [str(value) for value in values]
        axes.scatter(values, [trial[metric] for trial in trials], s=12)
        axes.scatter(values[best], trials[best][metric], s=90, facecolors="none", edgecolors="red")
        axes.set(xlabel=name)
        if numbers and min(values) > 0 and max(values) >= 30 * min(values):
            axes.set(xscale="log")
    figure.supylabel(metric)
    figure.savefig(file, dpi=120)


def _has_matplotlib(subject: str) -> bool:
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        logger.warning("No picture of %s is saved: that needs matplotlib, pip install 'baichuan-hf[bench]'", subject)
    return found
