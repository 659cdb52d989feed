"""`baichuan-hf bench ratio`: the original families with this package and with another version of it, in turns.

Each version runs in a process of its own (`ratio_worker.py`), which does one call when it is asked; so both are
measured in the same minutes of the same machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .choices import check_choices
from .rows import append_rows, machine


PACKAGE = Path(__file__).parents[2]
FAMILIES = {
    "rope": {"position_embedding_type": "rope"},
    "alibi": {"position_embedding_type": "alibi"},
}
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
# Tokens of the text that is read, and of the one that is written.
READ, WRITTEN = 512, 32
PASSES = ("forward", "training", "decode")


class Version:
    """A version of the package in a process, with one model."""

    def __init__(self, folder: Path, config: dict[str, Any], device: torch.device) -> None:
        if not (folder / "baichuan_hf" / "__init__.py").is_file():
            raise FileNotFoundError(f"{folder}: holds no folder baichuan_hf with the package.")
        settings = {"config": config, "device": str(device), "read": READ, "written": WRITTEN}
        self.process = subprocess.Popen(
            # -P: the folder of the script must not be searched for modules.
            [sys.executable, "-P", str(Path(__file__).with_name("ratio_worker.py")), json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, phase: str) -> float:
        """What one call takes."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{phase}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the process of the other version ended with {self.process.wait()}; see above.")
        return float(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure_ratio(
    rows: Path,
    before: Path,
    *,
    shapes: Sequence[str] = ("tiny",),
    rounds: int = 20,
    device: torch.device,
    label: str,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every family, shape and pass: the median time before and now, and the median of their ratios.

    Args:
        rows: ROWS.csv.
        before: folder that holds the other version's `baichuan_hf`.
        shapes: names in SHAPES.
        rounds: pairs of calls.
        device: where to run.
        label: what the rows call the other version.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        FileNotFoundError: there is no package in `before`.
        ValueError: there is no such shape.
    """
    origin = {**machine(device), "command": command}
    for shape in shapes:
        check_choices("shape", [shape], SHAPES)
        for family, positions in FAMILIES.items():
            config = {"vocab_size": 6144, "max_position_embeddings": 1024, **SHAPES[shape], **positions}
            versions = [Version(folder, config, device) for folder in (before, PACKAGE)]
            for phase in PASSES:
                pairs = [[version.seconds(phase) for version in versions] for _ in range(rounds + 2)][2:]
                old, new = (statistics.median(times) for times in zip(*pairs, strict=True))
                ratios = [after / earlier for earlier, after in pairs]
                low, *_, high = statistics.quantiles(ratios, n=5)
                row = {
                    "family": family,
                    "shape": shape,
                    "pass": phase,
                    "before": label,
                    "ms_before": f"{1000 * old:.3f}",
                    "ms_now": f"{1000 * new:.3f}",
                    "ratio": f"{statistics.median(ratios):.3f}",
                    "ratio_p20": f"{low:.3f}",
                    "ratio_p80": f"{high:.3f}",
                }
                append_rows(rows, [{**row, **origin}])
                report(f"{family}, {shape}, {phase}: {row['ms_before']} ms before, {row['ms_now']} ms now")
            for version in versions:
                version.close()
