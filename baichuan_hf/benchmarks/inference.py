"""`baichuan-hf bench decode` and `prefill`: Baichuan in turns with the Llama that has the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from ..evaluation.size import build_on_meta, flops_per_token
from .ceilings import copy_ceiling, matrix_ceiling
from .choices import SHAPES, check_choices
from .random_models import MODELS, PEER, compared_models, random_config, random_text
from .rows import append_rows, import_pyplot, is_measured, machine, read_rows, rows_table
from .timing import append_profile, interleaved, milliseconds, timed, times_as_fast


# Of `generate`: a cache that grows, one of a fixed size whose step is compiled or recorded as it is.
WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "graph": {"cache_implementation": "static", "compile_config": CompileConfig(backend="cudagraphs")},
    "compiled": {"cache_implementation": "static"},
}
# The first with a longer prompt in every call, so that no number of keys comes twice: as texts of users come.
NEW_LENGTHS = "new-lengths"
DECODING_WAYS = {**WAYS, NEW_LENGTHS: WAYS["dynamic"]}
PROFILED = 32  # tokens of a profile, whose size and time grow with them


def measure_decoding(
    rows: Path,
    *,
    shape: str = "7b",
    models: Sequence[str] = MODELS,
    ways: Sequence[str] = tuple(DECODING_WAYS),
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 256,
    rounds: int = 5,
    device: torch.device,
    profile: Path | None = None,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model and way: tokens that `generate` writes a second, greedily, the prompt's time
    included. The peer knows `graph` not: transformers only compiles.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        models: names in MODELS; the first is the one that the others are held against.
        ways: names in DECODING_WAYS.
        batch_size: texts at once.
        prompt_tokens: of each text; of the shortest, where every call has a longer one.
        new_tokens: to write after it.
        rounds: calls of each that count.
        device: where to run.
        profile: text file that tables of what the time went into are appended to.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape, model or way.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    check_choices("way", ways, DECODING_WAYS)
    sizes = {"batch_size": batch_size, "tokens": prompt_tokens, "new_tokens": new_tokens}
    cases = {way: {"case": "decode", "shape": shape, "way": way, **sizes} for way in ways}
    missing = [way for way in ways if not is_measured(rows, cases[way], _knowing(way, models))]
    if not missing:
        return
    built, difference = compared_models(shape, models, prompt_tokens + new_tokens, device)
    bandwidth = copy_ceiling(device)
    for way in missing:
        # Of the prompts, one for each call.
        lengths = itertools.count(prompt_tokens, new_tokens if way == NEW_LENGTHS else 0)
        settings = GenerationConfig(
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **DECODING_WAYS[way]
        )

        def write(model: PreTrainedModel, lengths: Iterator[int], settings: GenerationConfig, **limits: int) -> object:
            prompt = random_text(SHAPES[shape]["vocab_size"], batch_size, next(lengths), device)
            mask = torch.ones_like(prompt)
            return model.generate(prompt, attention_mask=mask, generation_config=settings, **limits)

        actions = {name: partial(write, built[name], lengths, settings) for name in _knowing(way, models)}
        first = {name: timed(action, device) for name, action in actions.items()}
        times = interleaved(actions, device, rounds=rounds)
        for name, seconds in times.items():
            steps = [value / new_tokens for value in seconds]
            row = {
                **{**cases[way], "model": name, **milliseconds(steps)},
                "tokens_per_second": f"{batch_size / median(steps):.1f}",
                "speed": times_as_fast(times, seconds),
                "share_of_ceiling": f"{_bytes_per_step(built[name]) / median(steps) / bandwidth:.3f}",
                "ceiling": f"{bandwidth / 1e12:.3f} TB/s",
                "first_call_seconds": f"{first[name]:.1f}",
                "difference": difference[name],
            }
            append_rows(rows, [{**row, **machine(device), "command": command}])
            report(f"{name}, {way}: {row['tokens_per_second']} tokens/s, first call {row['first_call_seconds']} s")
            if profile is not None:
                few = dict.fromkeys(("min_new_tokens", "max_new_tokens"), min(new_tokens, PROFILED))
                append_profile(profile, f"{name}, {way}", partial(actions[name], **few), device)


@torch.no_grad()
def measure_prefill(
    rows: Path,
    *,
    shape: str = "7b",
    models: Sequence[str] = MODELS,
    tokens: int = 4096,
    batch_size: int = 1,
    rounds: int = 9,
    device: torch.device,
    profile: Path | None = None,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model: reading a text of so many tokens into a cache, with the logits of the last.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        models: names in MODELS; the first is the one that the others are held against.
        tokens: of each text.
        batch_size: texts at once.
        rounds: calls of each that count.
        device: where to run.
        profile: text file that tables of what the time went into are appended to.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape or model.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    sizes = {"batch_size": batch_size, "tokens": tokens, "new_tokens": 0}
    case = {"case": "prefill", "shape": shape, "way": "", **sizes}
    if is_measured(rows, case, models):
        return
    built, difference = compared_models(shape, models, tokens, device)
    ceiling, operations = matrix_ceiling(device), batch_size * _prefill_flops(shape, tokens)
    text = random_text(SHAPES[shape]["vocab_size"], batch_size, tokens, device)
    actions = {name: partial(model, text, use_cache=True, logits_to_keep=1) for name, model in built.items()}
    first = {name: timed(action, device) for name, action in actions.items()}
    times = interleaved(actions, device, rounds=rounds)
    for name, seconds in times.items():
        row = {
            **{**case, "model": name, **milliseconds(seconds)},
            "tokens_per_second": f"{batch_size * tokens / median(seconds):.1f}",
            "speed": times_as_fast(times, seconds),
            "share_of_ceiling": f"{operations / median(seconds) / ceiling:.3f}",
            "ceiling": f"{ceiling / 1e12:.0f} TFLOP/s",
            "first_call_seconds": f"{first[name]:.1f}",
            "difference": difference[name],
        }
        append_rows(rows, [{**row, **machine(device), "command": command}])
        report(f"{name}, {tokens} tokens: {row['ms']} ms")
        if profile is not None:
            append_profile(profile, f"{name}, {tokens} tokens", actions[name], device)


def inference_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = (
        *("case", "shape", "model", "way", "batch_size", "tokens", "ms", "tokens_per_second", "speed"),
        *("share_of_ceiling", "first_call_seconds", "difference"),
    )
    return rows_table(rows, {name: name for name in columns})


def draw_inference(rows: Path, picture: Path) -> None:
    """The share of the ceiling of every row as a bar, the peer's in grey: of bandwidth for decoding, of matrix
    products for prefill.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    found = read_rows(rows)
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.3 * len(found)), layout="constrained")
    for label, colour, is_peer in (("peer", "tab:grey", True), ("baichuan-hf", "tab:blue", False)):
        places = [place for place, row in enumerate(found) if (row["model"] == PEER) is is_peer]
        shares = [float(found[place]["share_of_ceiling"]) for place in places]
        bars = axis.barh(places, shares, color=colour, label=label)
        ceilings = [found[place]["ceiling"] for place in places]
        ends = [f"{share:.0%} of {ceiling}" for share, ceiling in zip(shares, ceilings, strict=True)]
        axis.bar_label(bars, ends, padding=3, fontsize=8)
    axis.set_yticks(range(len(found)), [_case(row) for row in found])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of what a copy or a matrix product reached in the run")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)


def _case(row: Mapping[str, str]) -> str:
    """What a row is of, in few words."""
    what = f"{row['way']} step" if row["way"] else f"{row['tokens']} tokens"
    return f"{row['case']}, {row['shape']}, {what}, batch {row['batch_size']}: {row['model']}"


def _knowing(way: str, models: Sequence[str]) -> list[str]:
    """Those of the models that can go that way."""
    return [name for name in models if (name, way) != (PEER, "graph")]


def _prefill_flops(shape: str, tokens: int) -> int:
    """Of one text, whose tokens see half of it on average, and of the logits of its last one."""
    model = build_on_meta(random_config(SHAPES[shape], length=tokens))
    head = 2 * model.get_output_embeddings().weight.numel()
    return tokens * (flops_per_token(model, tokens // 2) - head) + head


def _bytes_per_step(model: PreTrainedModel) -> int:
    """What a step must read at least: every weight but the embeddings', of which it looks up a row."""
    embeddings = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not embeddings)
