"""`baichuan-hf bench load`: a model from safetensors to a device, and its first token, next to a Llama's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM

from .choices import SHAPES, check_choices
from .random_models import KINDS, MODELS, random_config, random_model
from .rows import append_rows, machine, rows_table
from .timing import milliseconds, synchronize


LENGTH, PROMPT = 4096, 16


def measure_loading(
    rows: Path,
    *,
    shape: str = "1b",
    models: Sequence[str] = MODELS,
    rounds: int = 5,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model: `from_pretrained` of bfloat16 weights that lie in the file cache, in turns, and
    how long the first token of a prompt of 16 takes after it.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES; its files are written into a temporary folder for every model.
        models: names in MODELS; the first is the one that the others are held against.
        rounds: loads of each that count, after one that does not.
        device: where to load to.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape or model.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    loads: dict[str, list[float]] = {name: [] for name in models}
    tokens: dict[str, list[float]] = {name: [] for name in models}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            config = random_config(SHAPES[shape], length=LENGTH, **KINDS[name])
            random_model(config, dtype=torch.bfloat16, device=device).save_pretrained(f"{folder}/{name}")
            sizes[name] = sum(file.stat().st_size for file in Path(folder, name).glob("*.safetensors"))
        for turn in range(rounds + 1):
            for name in models:
                load, token = _load(Path(folder, name), device)
                if turn:
                    loads[name].append(load)
                    tokens[name].append(token)
    origin = {**machine(device), "command": command}
    for name, seconds in loads.items():
        row = {
            "model": name,
            "shape": shape,
            "gigabytes": f"{sizes[name] / 1e9:.4f}",
            **milliseconds(seconds),
            "gb_per_second": f"{sizes[name] / 1e9 / median(seconds):.2f}",
            "speed": f"{_ratio(loads[models[0]], seconds):.3f}",
            "first_token_ms": f"{1000 * median(tokens[name]):.1f}",
            "first_token_speed": f"{_ratio(tokens[models[0]], tokens[name]):.3f}",
        }
        append_rows(rows, [{**row, **origin}])
        report(f"{name}, {shape}: {row['ms']} ms, {row['gb_per_second']} GB/s")


def loading_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        "model": "model",
        "shape": "shape",
        "gigabytes": "GB",
        "ms": "ms",
        "gb_per_second": "GB/s",
        "speed": "against Llama",
        "first_token_ms": "first token, ms",
        "first_token_speed": "against Llama",
    }
    return rows_table(rows, columns)


def _load(folder: Path, device: torch.device) -> tuple[float, float]:
    """Seconds until the weights are there, and from then to the first token."""
    prompt = torch.full((1, PROMPT), 5, device=device)
    synchronize(device)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device})
    synchronize(device)
    loaded = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False, pad_token_id=0)
    synchronize(device)
    return loaded - start, time.perf_counter() - loaded


def _ratio(peer: list[float], seconds: list[float]) -> float:
    return median(theirs / ours for theirs, ours in zip(peer, seconds, strict=True))
