"""`baichuan-hf bench attention`: attention with ALiBi in the forms that there are, next to causal SDPA without it.

Shape legend: H heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from ..model.cudnn_attention import AlibiAttention, suits_cudnn
from ..model.position_biases import alibi_head_dims, alibi_slopes
from .peak import peak_memory
from .random_models import inference_dtype
from .rows import append_rows, machine, rows_table
from .timing import interleaved, milliseconds


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
FLOOR = "causal, no bias"
# More numbers than this in a bias of heads x queries x keys are not tried: 8 GiB in bfloat16.
MAX_BIAS = 2**32
# Calls in a row, as layers make them: what they take, and not how long a first one takes to begin.
REPEATS = 8


def measure_attention(
    rows: Path,
    *,
    lengths: Sequence[int] = (4096, 16384),
    heads: int = 40,
    head_dim: int = 128,
    rounds: int = 9,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every form, length and direction: time, memory on top, and the time in that of the floor,
    causal SDPA without a bias. Outputs are held against the first form that has a bias.

    Args:
        rows: ROWS.csv.
        lengths: tokens of the text, which is one.
        heads: H.
        head_dim: D.
        rounds: of several calls of each that count.
        device: where to run: in bfloat16 on a GPU, else in float32.
        command: written into every row.
        report: called with a line for each row.
    """
    for length in lengths:
        torch.manual_seed(0)
        shape = (1, length, heads, head_dim)
        draw = partial(torch.randn, shape, device=device, dtype=inference_dtype(device))
        # Strided as the projections leave them.
        states = [draw().transpose(1, 2).requires_grad_() for _ in range(3)]
        forms = _forms(states)
        differences = _differences(forms, states)
        gradient = draw().transpose(1, 2)
        directions: dict[str, Callable[..., None]] = {
            "forward": _forward,
            "forward and backward": partial(_both, gradient=gradient),
        }
        for direction, run in directions.items():
            actions = {name: partial(run, attend, states) for name, attend in forms.items()}
            peaks = {name: _peak(action, device) for name, action in actions.items()}
            times = interleaved(actions, device, rounds=rounds, repeats=REPEATS)
            for name, seconds in times.items():
                row = {
                    **{"form": name, "direction": direction, "tokens": length, "heads": heads, "head_dim": head_dim},
                    **milliseconds(seconds),
                    "times_floor": f"{median(seconds) / median(times[FLOOR]):.3f}",
                    "peak_mib": peaks[name],
                    "difference": differences.get(name, ""),
                }
                append_rows(rows, [{**row, **machine(device), "command": command}])
                report(f"{length} tokens, {direction}, {name}: {row['ms']} ms, {row['times_floor']} of the floor")


def attention_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = ("tokens", "direction", "form", "ms", "times_floor", "peak_mib", "difference")
    return rows_table(rows, {name: name for name in columns})


def _forms(states: list[Tensor]) -> dict[str, Attend]:
    query, key, value = states
    heads, length, dim = query.shape[1:]
    scaling = dim**-0.5
    slopes = alibi_slopes(heads).to(query.device)
    causal = partial(F.scaled_dot_product_attention, is_causal=True, scale=scaling)
    forms: dict[str, Attend] = {FLOOR: causal}
    columns = torch.arange(length, device=query.device)
    if heads * length**2 <= MAX_BIAS:
        distance = (columns[:, None] - columns[None]).to(query.dtype)

        def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mask = -slopes[:, None, None].to(query.dtype) * distance
            mask = mask.masked_fill(distance < 0, torch.finfo(query.dtype).min)
            return F.scaled_dot_product_attention(query, key, value, mask[None], scale=scaling)

        forms["bias in a mask"] = masked

    def extended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dims = alibi_head_dims(slopes, query.shape[-1], columns, columns, query.dtype)
        return causal(*dims.extend(query, key, value), scale=dims.scaling)[..., : value.shape[-1]]

    forms["head dimensions"] = extended
    if suits_cudnn(query.detach(), key.detach(), value.detach()):
        forms["cuDNN"] = lambda query, key, value: AlibiAttention.apply(query, key, value, scaling)
    return forms


@torch.no_grad()
def _differences(forms: dict[str, Attend], states: list[Tensor]) -> dict[str, str]:
    biased = {name: attend(*states).float() for name, attend in forms.items() if name != FLOOR}
    expected = next(iter(biased.values()))
    return {name: f"{(output - expected).abs().max().item():.1e}" for name, output in biased.items()}


@torch.no_grad()
def _forward(attend: Attend, states: list[Tensor]) -> None:
    attend(*states)


def _both(attend: Attend, states: list[Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(attend(*states), states, gradient)


def _peak(action: Callable[[], None], device: torch.device) -> str:
    """MiB on top of what was there; unknown on a CPU, where the process keeps what it once had."""
    if device.type != "cuda":
        return ""
    action()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize(device)
    return str(round((peak_memory(device) - before) / 2**20))
