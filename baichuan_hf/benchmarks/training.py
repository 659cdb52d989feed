"""`baichuan-hf bench train`: training steps of Baichuan models and of the Llama that a user would train instead.

Each model lives in a process of its own (`training_worker.py`), which does a step when it is asked; so all are
measured in the same minutes of the same machine, and the memory of each is its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..evaluation.size import build_on_meta, flops_per_token
from ..model.configuration_baichuan import BaichuanConfig
from .ceilings import matrix_ceiling
from .choices import SHAPES, check_choices
from .rows import append_rows, machine, rows_table
from .timing import milliseconds


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        model: `llama`, transformers' own, or `baichuan`.
        alibi: with ALiBi in place of RoPE.
        liger: with Liger's kernels.
        compiled: each layer by torch.compile.
        checkpoint_every: of so many layers one computes its activations again in the backward pass; 0: none does.
    """

    model: str = "baichuan"
    alibi: bool = False
    liger: bool = False
    compiled: bool = False
    checkpoint_every: int = 1


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        method: `lora`, of rank 16 on every linear layer; `qlora`, the same over 4 bits; `full`.
        shape: name in SHAPES.
        batch_size: rows of a step.
        length: tokens of a row.
        variants: by name; the first that runs is the peer that the others are held against.
    """

    method: str
    shape: str
    batch_size: int
    length: int
    variants: dict[str, Variant]


# With adapters, and all layers checkpointed.
ADAPTED = {
    "Llama, Liger": Variant("llama", liger=True),
    "Llama": Variant("llama"),
    "Baichuan": Variant(),
    "Baichuan, Liger": Variant(liger=True),
}
CASES: dict[str, Case] = {
    "lora": Case(
        "lora",
        "7b",
        4,
        2048,
        {
            **ADAPTED,
            "Baichuan, compiled": Variant(compiled=True),
            "Baichuan, compiled, half checkpointed": Variant(compiled=True, checkpoint_every=2),
            "Baichuan, compiled, none checkpointed": Variant(compiled=True, checkpoint_every=0),
        },
    ),
    "qlora": Case("qlora", "7b", 4, 2048, ADAPTED),
    "full": Case(
        "full",
        "1b",
        4,
        4096,
        {
            "Llama, Liger": Variant("llama", liger=True, checkpoint_every=0),
            "Llama": Variant("llama", checkpoint_every=0),
            "Baichuan": Variant(checkpoint_every=0),
            "Baichuan, compiled": Variant(compiled=True, checkpoint_every=0),
            "Baichuan, compiled, ALiBi": Variant(compiled=True, checkpoint_every=0, alibi=True),
        },
    ),
}


class Trainee:
    """A model in a process of its own."""

    def __init__(self, case: Case, variant: Variant, device: torch.device) -> None:
        settings = {**asdict(case), **asdict(variant), "shape": SHAPES[case.shape], "device": str(device)}
        del settings["variants"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "baichuan_hf.benchmarks.training_worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """A step of the optimiser: `seconds`, the `loss` before it, and `peak_gib` so far.

        Raises:
            RuntimeError: the process failed, with the last line that it wrote.
        """
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if not (answer := self.process.stdout.readline()):
            lines = self.process.stderr.read().strip().splitlines() or ["no word"]
            raise RuntimeError(lines[-1])
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure_training(
    rows: Path,
    *,
    cases: Sequence[str] = tuple(CASES),
    shape: str | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    rounds: int = 10,
    at_once: int = 3,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> list[str]:
    """Append a row for every variant of the cases that runs; returns those that failed, and why.

    Args:
        rows: ROWS.csv.
        cases: names in CASES.
        shape: name in SHAPES, in place of the case's own.
        batch_size: rows of a step, likewise.
        length: tokens of a row, likewise.
        rounds: steps of each that count, after two that do not.
        at_once: models in the device's memory together, the peer among them; fewer, down to two, if they do not fit.
        device: where to train.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such case or shape, or only one model at once.
    """
    check_choices("case", cases, CASES)
    check_choices("shape", [shape] if shape else [], SHAPES)
    if at_once < 2:
        raise ValueError(f"--at-once {at_once}: must be 2 or more, a model and its peer.")
    failed: list[str] = []
    origin = {**machine(device), "command": command}
    ceiling = matrix_ceiling(device)
    for name in cases:
        case = CASES[name]
        case = replace(
            case, shape=shape or case.shape, batch_size=batch_size or case.batch_size, length=length or case.length
        )
        peer: list[str] = []
        waiting = list(case.variants)
        size = at_once
        while waiting:
            taken, rest = waiting[: size - len(peer)], waiting[size - len(peer) :]
            group = [*peer, *taken]
            times, last, reasons = _take_turns(case, group, rounds, device)
            lost = [reason for variant, reason in reasons.items() if variant in peer or "out of memory" in reason]
            if lost and len(group) > 2:
                size = len(group) - 1
                report(f"{name}: {'; '.join(reasons)} failed beside each other, so now {size} at once: {lost[0]}")
                continue
            waiting = rest
            peer = peer or list(times)[:1]
            for variant in taken:
                if variant in reasons:
                    failed.append(f"{name}, {variant}: {reasons[variant]}")
                elif peer[0] in reasons:
                    failed.append(f"{name}, {variant}: its peer, {peer[0]}, failed beside it: {reasons[peer[0]]}")
                else:
                    row = _row(name, case, variant, times[variant], times[peer[0]], last[variant], ceiling)
                    append_rows(rows, [{**row, **origin}])
                    report(f"{name}, {variant}: {row['tokens_per_second']} tokens/s, {row['peak_gib']} GiB")
    return failed


def training_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        "case": "case",
        "variant": "variant",
        "tokens_per_second": "tokens/s",
        "speed": "against the peer",
        "peak_gib": "peak GiB",
        "share_of_ceiling": "share of the ceiling",
    }
    return rows_table(rows, columns)


def _row(
    name: str,
    case: Case,
    variant: str,
    seconds: list[float],
    peer: list[float],
    last: dict[str, float],
    ceiling: float,
) -> dict[str, Any]:
    rate = case.batch_size * case.length / statistics.median(seconds)
    # Each step with the peer's in the same round.
    speed = statistics.median(theirs / ours for theirs, ours in zip(peer, seconds, strict=True))
    share = f"{_training_flops(case, case.variants[variant]) * rate / ceiling:.3g}"
    return {
        "case": name,
        "variant": variant,
        "shape": case.shape,
        "batch_size": case.batch_size,
        "length": case.length,
        **milliseconds(seconds),
        "tokens_per_second": f"{rate:.0f}",
        "speed": f"{speed:.3f}",
        "peak_gib": f"{last['peak_gib']:.2f}",
        # Frozen weights have no gradients to compute.
        "share_of_ceiling": share if case.method == "full" else "",
        "ceiling_tflops": f"{ceiling / 1e12:.2f}",
        "loss": f"{last['loss']:.4f}",
    }


def _take_turns(
    case: Case, names: Sequence[str], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]], dict[str, str]]:
    """Seconds of each variant's steps, the answer to its last one, and why those that failed did."""
    trainees = {name: Trainee(case, case.variants[name], device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    try:
        for turn in range(rounds + 2):
            for name in list(times):
                try:
                    last[name] = trainees[name].step()
                except RuntimeError as error:
                    reasons[name] = str(error)
                    del times[name]
                    continue
                if turn > 1:
                    times[name].append(last[name]["seconds"])
    finally:
        for trainee in trainees.values():
            trainee.close()
    return times, last, reasons


def _training_flops(case: Case, variant: Variant) -> float:
    """Per token, of a causal model: it sees half of the text on average; recomputation does not count."""
    config = BaichuanConfig(
        **SHAPES[case.shape],
        max_position_embeddings=case.length,
        position_embedding_type="alibi" if variant.alibi else "rope",
    )
    return 3 * flops_per_token(build_on_meta(config), case.length // 2)
