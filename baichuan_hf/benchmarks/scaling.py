"""`baichuan-hf bench scaling`: time and memory of one encoder layer as the text grows, by kind of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .choices import check_choices
from .rows import append_rows, import_pyplot, machine, read_rows
from .timing import interleaved, milliseconds


# A layer of BERT-base and of Longformer-base. No positions: Linformer and Performer take only those of the embeddings.
LAYER: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "gated_mlp": False,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "position_embedding_type": "none",
    "is_causal": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "full, eager": {},
    "full, sdpa": {},
    "Longformer": {"sliding_window": 256, "num_global_tokens": 1},
    "Linformer": {"attention_type": "linformer", "projected_length": 256},
    "Performer": {"attention_type": "performer"},
}
LENGTHS = tuple(1024 * 2**power for power in range(7))


def measure_scaling(
    rows: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    kinds: Sequence[str] | None = None,
    rounds: int = 10,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every kind, length and pass that ROWS.csv lacks: `forward`, or `training` with the backward
    pass; one text, bfloat16. What does not fit into memory has a row without numbers.

    Raises:
        ValueError: there is no such kind of attention.
    """
    check_choices("kind", kinds or (), KINDS)
    origin = {**machine(device), "command": command}
    done = {(row["attention"], int(row["tokens"]), row["pass"]) for row in read_rows(rows)}
    for length in sorted(lengths):
        for phase, run in {"forward": _forward, "training": _training}.items():
            wanted = [kind for kind in kinds or KINDS if (kind, length, phase) not in done]
            peaks = {}
            actions = {}
            for kind in wanted:
                action = partial(run, _build(kind, length, device), _text(length, device))
                peaks[kind] = _peak(action, device)
                if peaks[kind] is not None:
                    actions[kind] = action
            times = interleaved(actions, device, rounds=rounds)
            for kind in wanted:
                numbers = milliseconds(times[kind]) if kind in times else {"ms": "", "ms_p20": "", "ms_p80": ""}
                row = {"attention": kind, "tokens": length, "pass": phase, **numbers, "peak_mib": peaks[kind] or ""}
                append_rows(rows, [{**row, **origin}])
                report(f"{kind}, {length} tokens, {phase}: {numbers['ms'] or 'out of memory'} ms")


def draw_scaling(rows: Path, picture: Path) -> None:
    """Time and peak memory over the length, both axes logarithmic."""
    pyplot = import_pyplot()
    panels = [("forward", "ms"), ("training", "ms"), ("forward", "peak_mib"), ("training", "peak_mib")]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7), sharex=True, layout="constrained")
    found = read_rows(rows)
    for axis, (phase, column) in zip(axes.flat, panels, strict=True):
        for kind in dict.fromkeys(row["attention"] for row in found):
            points = list(_points(found, kind, phase, column))
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=kind)
        axis.set(xscale="log", yscale="log", title=phase, ylabel={"ms": "ms", "peak_mib": "peak memory, MiB"}[column])
        axis.set_xticks([1024 * 2**power for power in range(7)], [f"{2**power}k" for power in range(7)])
        axis.minorticks_off()
    axes[0, 0].legend()
    figure.supxlabel("tokens")
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def _points(rows: list[dict[str, str]], kind: str, phase: str, column: str) -> Iterator[tuple[int, float]]:
    for row in sorted(rows, key=lambda row: int(row["tokens"])):
        if (row["attention"], row["pass"]) == (kind, phase) and row[column]:
            yield int(row["tokens"]), float(row[column])


def _build(kind: str, length: int, device: torch.device) -> PreTrainedModel:
    config = BaichuanConfig(**LAYER, max_position_embeddings=length, **KINDS[kind])
    backend = "eager" if kind.endswith("eager") else "sdpa"
    return AutoModel.from_config(config, attn_implementation=backend, dtype=torch.bfloat16).to(device)


def _text(length: int, device: torch.device) -> torch.Tensor:
    return torch.randn(1, length, LAYER["hidden_size"], device=device, dtype=torch.bfloat16, requires_grad=True)


@torch.no_grad()
def _forward(model: PreTrainedModel, text: torch.Tensor) -> None:
    model(inputs_embeds=text)


def _training(model: PreTrainedModel, text: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    text.grad = None
    model(inputs_embeds=text).last_hidden_state.float().square().mean().backward()


def _peak(action: Callable[[], None], device: torch.device) -> int | None:
    """MiB that a call needs on top of weights and text, on a CUDA device; 0 elsewhere; None: there is not so much."""
    if device.type != "cuda":
        action()
        return 0
    try:
        action()  # the first call may allocate what stays, such as a library's workspace
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return round((torch.cuda.max_memory_allocated(device) - before) / 2**20)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
