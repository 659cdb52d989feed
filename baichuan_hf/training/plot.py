"""The picture of a run: its losses and learning rate over the steps."""

import importlib.util
import logging
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
    if not losses["training loss"]:
        return
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No picture of the loss is saved: that needs matplotlib, pip install 'baichuan-hf[bench]'")
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
