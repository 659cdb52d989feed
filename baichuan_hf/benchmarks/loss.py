"""`baichuan-hf bench loss`: the loss over a large vocabulary in chunks, on whole logits, and by Liger's kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from transformers.utils import is_liger_kernel_available

from ..model.lm_head import LM_HEADS
from ..model.loss import chunked_loss
from .peak import in_a_process, peak_memory
from .rows import append_rows, machine, rows_table
from .timing import interleaved, milliseconds


Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]


def measure_loss(
    rows: Path,
    *,
    tokens: int = 8192,
    hidden_size: int = 4096,
    vocab_size: int = 125696,
    rounds: int = 10,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for each head and way to its loss: forward and backward, time in turns and peak memory.

    Weights and states are bfloat16 on a CUDA device and float32 elsewhere, where the memory is that of a process.

    Args:
        rows: ROWS.csv.
        tokens: of a step.
        hidden_size: width of the states.
        vocab_size: number of classes.
        rounds: calls of each that count.
        device: where to run.
        command: written into every row.
        report: called with a line for each row.
    """
    origin = {**machine(device), "command": command}
    sizes = (tokens, hidden_size, vocab_size, device)
    for normalized, name in {False: "linear", True: "NormHead"}.items():
        peaks = {way: in_a_process(functools.partial(_peak, way, normalized, *sizes)) for way, _ in _ways(device)}
        head, states, labels = _inputs(normalized, *sizes)
        actions = {way: functools.partial(_step, loss, head, states, labels) for way, loss in _ways(device)}
        times = interleaved(actions, device, rounds=rounds)
        for way, seconds in times.items():
            shape = {"tokens": tokens, "hidden_size": hidden_size, "vocab_size": vocab_size}
            row = {"head": name, "loss": way, **shape, **milliseconds(seconds), "peak_mib": peaks[way]}
            append_rows(rows, [{**row, **origin}])
            report(f"{name}, {way}: {row['ms']} ms, {peaks[way]} MiB")


def loss_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = ("head", "loss", "tokens", "hidden_size", "ms", "peak_mib", "device")
    return rows_table(rows, {name: name for name in columns})


def _ways(device: torch.device) -> Iterator[tuple[str, Loss]]:
    yield "whole logits", _whole
    yield "in chunks", _chunked
    if device.type == "cuda" and is_liger_kernel_available():
        yield "Liger", _liger


def _whole(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    # As transformers' own loss function: logits in float32.
    return F.cross_entropy(head(states).float(), labels)


def _chunked(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    return chunked_loss(head, states[None], labels[None], vocab_size=head.out_features, shifted=False)


def _liger(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    weight = head.weight if type(head) is nn.Linear else F.normalize(head.weight)
    return LigerFusedLinearCrossEntropyLoss()(weight, states, labels)


def _step(loss: Loss, head: nn.Linear, states: Tensor, labels: Tensor) -> None:
    head.zero_grad(set_to_none=True)
    states.grad = None
    loss(head, states, labels).backward()


def _inputs(
    normalized: bool, tokens: int, hidden_size: int, vocab_size: int, device: torch.device
) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = LM_HEADS[normalized](hidden_size, vocab_size, bias=False, device=device, dtype=dtype)
    states = torch.randn(tokens, hidden_size, device=device, dtype=dtype, requires_grad=True)
    return head, states, torch.randint(vocab_size, (tokens,), device=device)


def _peak(way: str, normalized: bool, tokens: int, hidden_size: int, vocab_size: int, device: torch.device) -> int:
    """MiB that a step needs on top of weights, states and their gradients, which are there before it."""
    head, states, labels = _inputs(normalized, tokens, hidden_size, vocab_size, device)
    head.weight.grad, states.grad = torch.ones_like(head.weight), torch.ones_like(states)
    before = peak_memory(device)
    dict(_ways(device))[way](head, states, labels).backward()
    return round((peak_memory(device) - before) / 2**20)
