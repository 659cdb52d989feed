"""Rows of measurements in CSV files, with the machine and the versions they come from."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.table import Table

from .. import __version__


def machine(device: torch.device) -> dict[str, str]:
    """The columns `date`, `device` and `versions`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, baichuan-hf {__version__}",
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if there is no file yet."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_measured(path: Path, case: Mapping[str, object], models: Iterable[str]) -> bool:
    """Whether a file holds a row of each of the models, in the column `model`, with the values of the case."""
    found = {row["model"] for row in read_rows(path) if all(row[key] == str(value) for key, value in case.items())}
    return set(models) <= found


def rows_table(path: Path, columns: Mapping[str, str]) -> Table:
    """The rows of a file as a table to print: columns of the file, and what they are called."""
    table = Table(box=None)
    for title in columns.values():
        table.add_column(title)
    for row in read_rows(path):
        table.add_row(*(row[name] for name in columns))
    return table


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows of the same columns as those that the file holds.

    Raises:
        ValueError: the file has other columns.
    """
    rows = list(rows)
    if not rows:
        return
    columns = list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.exists()
    if exists:
        with open(path, encoding="utf-8", newline="") as file:
            found = next(csv.reader(file), [])
        if found != columns:
            raise ValueError(f"{path}: holds other columns ({', '.join(found)}): name another file.")
    with open(path, "a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not exists:
            writer.writeheader()
        writer.writerows(rows)


def import_pyplot() -> Any:
    """`matplotlib.pyplot`, drawing into files.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'baichuan-hf[bench]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
