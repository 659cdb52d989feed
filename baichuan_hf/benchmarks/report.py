"""What the rows of `baichuan-hf bench architectures` say: table and picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich import box
from rich.table import Table

from .architectures import companion, loss_of
from .rows import import_pyplot, read_rows
from .variants import Settings, list_variants


FACTORS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Summary:
    """One variant over its seeds, at the learning rate that was best with the first.

    Args:
        axis: the component.
        name: its value.
        parameters: in total.
        active_parameters: that a token meets.
        learning_rate: the best one.
        bits: bits per byte of each seed, infinite where training diverged.
        bits_by_factor: their mean when the model sees so many times the trained length; nan where it cannot.
        bits_by_rate: of the first seed at every rate.
        step_time: of a training step, in that of the baseline's; nan where it was not measured.
        cuda_graph: whether both were timed as CUDA graphs, without Python's time.
    """

    axis: str
    name: str
    parameters: int
    active_parameters: int
    learning_rate: float
    bits: tuple[float, ...]
    bits_by_factor: dict[int, float]
    bits_by_rate: dict[float, float]
    step_time: float
    cuda_graph: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.bits)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; nan of a single one, or where training diverged."""
        return statistics.stdev(self.bits) if len(self.bits) > 1 and math.isfinite(self.mean) else math.nan


def summarize(rows: Path) -> list[Summary]:
    """The variants that have runs, axis by axis; a baseline is one of every axis.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = read_rows(rows)
    if not found:
        raise FileNotFoundError(f"{rows}: no rows; `baichuan-hf bench architectures` writes them.")
    settings = _settings(found)
    times = {row["variant"]: row for row in read_rows(companion(rows, "speed"))}
    summaries = []
    for variant in list_variants(settings):
        runs = [row for row in found if row["variant"] == variant.key]
        first = {float(row["learning_rate"]): loss_of(row) for row in runs if row["seed"] == "0"}
        if not first:
            continue
        rate = min(first, key=lambda rate: first[rate])
        chosen = sorted((row for row in runs if float(row["learning_rate"]) == rate), key=lambda row: row["seed"])
        columns = {factor: "bits_per_byte" if factor == 1 else f"bits_per_byte_{factor}x" for factor in FACTORS}
        time = times.get(variant.key)
        summaries.append(
            Summary(
                axis=variant.axis,
                name=variant.name,
                parameters=int(runs[0]["parameters"]),
                active_parameters=int(runs[0]["active_parameters"]),
                learning_rate=rate,
                bits=tuple(loss_of(row) for row in chosen),
                bits_by_factor={
                    factor: statistics.fmean(float(row[column] or "nan") for row in chosen)
                    for factor, column in columns.items()
                },
                bits_by_rate=dict(sorted(first.items())),
                step_time=float(time["ms"]) / float(time["ms_baseline"]) if time else math.nan,
                cuda_graph=time is not None and time["cuda_graph"] == "True",
            )
        )
    compared = [summary.axis for summary in summaries]
    return [summary for summary in summaries if compared.count(summary.axis) > 1] or summaries[:1]


def architecture_table(summaries: Sequence[Summary]) -> Table:
    """Bits per byte of held-out text, mean and standard deviation over the seeds; step times in the baseline's."""
    table = _table("component", "parameters", "rate", "seeds", "bits per byte", "step time")
    for axis, rows in groupby(summaries, key=lambda summary: summary.axis):
        table.add_section()
        table.add_row(axis, style="bold")
        for row in rows:
            time = "-" if math.isnan(row.step_time) else f"{row.step_time:.2f}" + ("" if row.cuda_graph else "*")
            bits = f"{row.mean:.3f}" + (f" ± {row.spread:.3f}" if len(row.bits) > 1 else "")
            cells = (f"{row.parameters:,}", f"{row.learning_rate:g}", str(len(row.bits)), bits, time)
            table.add_row(f"  {row.name}", *cells)
    if any(not row.cuda_graph and not math.isnan(row.step_time) for row in summaries):
        table.caption = "* with the time that Python takes to launch the kernels"
    return table


def length_table(summaries: Sequence[Summary]) -> Table:
    """Bits per byte where the model sees the trained length at once, and its multiples, which it has never seen."""
    table = _table("positions", "trained length", *(f"{factor}x" for factor in FACTORS[1:]))
    for row in summaries:
        if row.axis == "positions":
            bits = row.bits_by_factor.values()
            table.add_row(row.name, *("-" if math.isnan(value) else f"{value:.3f}" for value in bits))
    return table


def rate_table(summaries: Sequence[Summary]) -> Table:
    """Bits per byte of the first seed at every learning rate: how much a component depends on it."""
    rates = list(dict.fromkeys(rate for row in summaries for rate in row.bits_by_rate))
    table = _table("learning rate", *(f"{rate:g}" for rate in rates))
    for axis, rows in groupby(summaries, key=lambda summary: summary.axis):
        table.add_section()
        table.add_row(axis, style="bold")
        for row in rows:
            bits = (row.bits_by_rate.get(rate, math.nan) for rate in rates)
            table.add_row(f"  {row.name}", *("-" if math.isnan(value) else f"{value:.3f}" for value in bits))
    return table


def _table(name: str, *columns: str) -> Table:
    table = Table(name, box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def draw_architectures(rows: Path, picture: Path) -> None:
    """A panel per component: training loss of every variant at its best rate, the mean over the seeds and the range.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    summaries = summarize(rows)
    keys = {(variant.axis, variant.name): variant.key for variant in list_variants(_settings(read_rows(rows)))}
    curves: dict[tuple[str, float], dict[int, list[float]]] = {}
    for row in read_rows(companion(rows, "curves")):
        points = curves.setdefault((row["variant"], float(row["learning_rate"])), {})
        points.setdefault(int(row["step"]), []).append(float(row["loss"]))
    axes = list(dict.fromkeys(summary.axis for summary in summaries))
    columns = 2 if len(axes) > 1 else 1
    lines = math.ceil(len(axes) / columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 3.2 * lines), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(axes) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels.flat, axes, strict=False):
        ends = []
        for summary in (summary for summary in summaries if summary.axis == axis):
            points = curves[keys[axis, summary.name], summary.learning_rate]
            steps = list(points)
            ends.append(min(points[steps[-1]]))
            (line,) = panel.plot(steps, [statistics.fmean(points[step]) for step in steps], label=summary.name, lw=1)
            lows, highs = ([choose(points[step]) for step in steps] for choose in (min, max))
            panel.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.2, lw=0)
        # The end of training is where variants differ; the fall from the first step would flatten it.
        lowest = min(ends)
        panel.set_ylim(lowest - 0.1, lowest + 1.4)
        panel.set_title(axis)
        panel.legend(fontsize=7)
    figure.supxlabel("steps")
    figure.supylabel("training loss, nats per token")
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def _settings(rows: list[dict[str, str]]) -> Settings:
    return Settings(**json.loads(rows[0]["settings"]))
