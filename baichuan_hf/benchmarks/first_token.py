"""`baichuan-hf bench start`: how long a user waits for the first tokens, in a process that has written none before."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from .choices import SHAPES, check_choices
from .inference import WAYS
from .peak import in_a_process
from .random_models import KINDS, MODELS, PEER, inference_dtype, random_config, random_model, random_text
from .rows import append_rows, is_measured, machine, rows_table
from .timing import synchronize


# The prompt makes the first token; the step is compiled for the second, and recorded as a CUDA graph for the third.
TOKENS = (1, 2, 3, 32)
PROMPT = 16


def measure_start(
    rows: Path,
    *,
    shape: str = "7b",
    models: Sequence[str] = MODELS[:2],
    ways: Sequence[str] = tuple(WAYS),
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model, way and state of the compiler's cache: seconds from the first call of `generate`
    until tokens 1, 2, 3 and 32 are there. Each is a process of its own, whose model is built before the clock starts.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        models: names in MODELS.
        ways: names in `inference.WAYS`. What compiles runs twice: what the first process leaves on the disk (the
            cache, which torch keeps in TORCHINDUCTOR_CACHE_DIR) is there for the second.
        device: where to run.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape, model or way.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    check_choices("way", ways, WAYS)
    for way in ways:
        for name in models:
            case = {"shape": shape, "way": way}
            states = ("cold", "warm") if way == "compiled" else ("",)
            if (name, way) == (PEER, "graph") or is_measured(rows, {**case, "compile_cache": states[-1]}, [name]):
                continue
            with tempfile.TemporaryDirectory() as cache:
                for state in states:
                    seconds = in_a_process(partial(_write, shape, name, way, device, cache))
                    row = {
                        **{"model": name, **case, "compile_cache": state},
                        **{f"token_{number}_seconds": f"{seconds[number - 1]:.2f}" for number in TOKENS},
                    }
                    append_rows(rows, [{**row, **machine(device), "command": command}])
                    report(", ".join(str(value) for value in row.values()))


def start_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {"model": "model", "shape": "shape", "way": "way", "compile_cache": "compile cache"}
    return rows_table(rows, columns | {f"token_{number}_seconds": f"token {number}, s" for number in TOKENS})


class _Clock(BaseStreamer):
    """When each token was there; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _write(shape: str, name: str, way: str, device: torch.device, cache: str) -> list[float]:
    """Seconds until each token."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    os.environ["TRITON_CACHE_DIR"] = f"{cache}/triton"
    config = random_config(SHAPES[shape], length=PROMPT + max(TOKENS), **KINDS[name])
    model = random_model(config, dtype=inference_dtype(device), device=device).eval()
    prompt = random_text(config.vocab_size, 1, PROMPT, device)
    settings = GenerationConfig(
        max_new_tokens=max(TOKENS), min_new_tokens=max(TOKENS), do_sample=False, pad_token_id=0, **WAYS[way]
    )
    clock = _Clock()
    synchronize(device)
    start = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=clock)
    return [moment - start for moment in clock.times[1:]]
