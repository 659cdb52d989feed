"""`baichuan-hf bench parallel`: one training run, by one process and by several in each way of dividing the work.

Every run sees the same rows in the same steps, so that its losses can be held against those of one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import BaichuanConfig, BaichuanForCausalLM
from ..training.launch import launch_config
from . import choices
from .rows import append_rows, machine
from .timing import milliseconds


SHAPES = {name: choices.SHAPES[name] for name in ("tiny", "1b")}
WAYS = ("ddp", "fsdp2", "tp")
# Steps that are not timed: memory is still being laid out in them.
WARM_UP = 3


def measure_parallel(
    rows: Path,
    *,
    ways: Sequence[str] = WAYS,
    shape: str = "1b",
    processes: int = 2,
    batch_size: int = 16,
    length: int = 2048,
    steps: int = 15,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> list[str]:
    """Append a row for one process, and for each way of sharing its work; returns the ways that failed and why.

    Args:
        rows: ROWS.csv.
        ways: names in WAYS.
        shape: name in SHAPES.
        processes: that share it.
        batch_size: rows of a step, of all processes together.
        length: tokens of a row.
        steps: of the optimiser.
        device: cuda, or cpu, where accelerate knows data parallelism only.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        RuntimeError: one process alone failed.
        ValueError: there is no such way or shape, or the rows cannot be divided among the processes.
    """
    choices.check_choices("way", ways, WAYS)
    choices.check_choices("shape", [shape], SHAPES)
    if batch_size % processes:
        raise ValueError(f"--batch-size {batch_size} is no multiple of --processes {processes}.")
    failed = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with device:
            config = BaichuanConfig(**SHAPES[shape], max_position_embeddings=max(length, 4096))
            BaichuanForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        for way in ("one", *ways):
            settings = {
                "model": folder,
                "output_dir": f"{folder}/out",
                "result": f"{folder}/{way}.json",
                "device": device.type,
                "steps": steps,
                # Those that divide each matrix all see the whole batch.
                "batch_size": batch_size // processes if way in ("ddp", "fsdp2") else batch_size,
                "data_shape": [4 * batch_size, length],
                "tensor_parallel_size": processes if way == "tp" else 1,
            }
            count = 1 if way == "one" else processes
            try:
                result = _run(way, count, settings)
            except RuntimeError as error:
                if way == "one":
                    raise
                failed.append(f"{way}: {error}")
                report(failed[-1])
                continue
            losses = losses or result["losses"]
            times = milliseconds(result["seconds"][WARM_UP - 1 :])
            row = {
                "way": way,
                "processes": count,
                "shape": shape,
                "tokens_per_step": batch_size * length,
                **times,
                "tokens_per_second": f"{1000 * batch_size * length / float(times['ms']):.0f}",
                "peak_gib": "" if result["peak_gib"] is None else f"{result['peak_gib']:.2f}",
                "first_loss": f"{result['losses'][0]:.5f}",
                "last_loss": f"{result['losses'][-1]:.5f}",
                "loss_difference": f"{_difference(result['losses'], losses):.1e}",
            }
            append_rows(rows, [{**row, **machine(device), "command": command}])
            report(", ".join(f"{name} {value}" for name, value in row.items()))
    return failed


def _run(way: str, processes: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What the first process found. Raises RuntimeError with the end of what they wrote if one of them fails."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    accelerate = ["-m", "accelerate.commands.launch", f"--num_processes={processes}", "--main_process_port=0"]
    launcher = {"one": [], "tp": torchrun}.get(way)
    if launcher is None:
        launcher = [*accelerate, f"--config_file={launch_config(way)}"]
    command = [sys.executable, *launcher, "-m", "baichuan_hf.benchmarks.parallel_worker", json.dumps(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if settings["device"] == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    elif way == "one":
        # Else Trainer would divide the batch among all that it sees, by DataParallel.
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if "Error: " in line] or process.stderr.splitlines()
        raise RuntimeError(" | ".join(line.strip() for line in lines[:3]))
    return json.loads(Path(settings["result"]).read_text(encoding="utf-8"))


def _difference(losses: list[float], reference: list[float]) -> float:
    """The largest of all steps, as a share of the loss of one process."""
    return max(abs(loss - other) / other for loss, other in zip(losses, reference, strict=True))
