"""`baichuan-hf bench assisted`: prompt lookup and a draft model on a text that repeats itself, next to neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation import BaseStreamer

from .choices import SHAPES, check_choices
from .random_models import KINDS, MODELS, PEER, inference_dtype, random_config, random_model
from .rows import append_rows, is_measured, machine, rows_table
from .timing import interleaved, milliseconds, timed, times_as_fast


OURS = tuple(name for name in MODELS if name != PEER)
# Of `generate`; the first is what the others are held against. transformers assists no static cache.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lookup": {"prompt_lookup_num_tokens": 10},
    "assistant": {},
    "compiled": {"cache_implementation": "static"},
}
# The text: so many tokens, again and again, behind those that are special.
PERIOD, FIRST = 50, 3
# The draft model has one layer for so many.
LAYERS_PER_DRAFT = 16
# To embeddings of spread 1 all layers of the 13B then add 0.4: the right token's logit is 60 above the next, where
# bfloat16 has steps of 0.25.
OUTPUT_SCALE = 0.02


def measure_assisted(
    rows: Path,
    *,
    shape: str = "7b",
    models: Sequence[str] = OURS,
    prompt_tokens: int = 128,
    new_tokens: int = 256,
    rounds: int = 3,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model and way: tokens that `generate` writes a second, of one text, greedily. What is
    drafted is always right, so that it is the most there is to gain.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        models: names in MODELS.
        prompt_tokens: of the text, at least two periods of it, or lookup finds nothing.
        new_tokens: to write after it.
        rounds: calls of each that count.
        device: where to run; `compiled` is for a GPU.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape or model, or the prompt is too short.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    if prompt_tokens < 2 * PERIOD:
        raise ValueError(f"--prompt-tokens {prompt_tokens}: must be {2 * PERIOD} or more, two periods of the text.")
    ways = [way for way in WAYS if way != "compiled" or device.type == "cuda"]
    case = {"shape": shape, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    for name in models:
        if all(is_measured(rows, {**case, "way": way}, [name]) for way in ways):
            continue
        for way, values in _measure(name, shape, prompt_tokens, new_tokens, ways, rounds, device).items():
            append_rows(rows, [{**case, "model": name, "way": way, **values, **machine(device), "command": command}])
            report(
                f"{name}, {way}: {values['tokens_per_second']} tokens/s, {values['tokens_per_pass']} a forward pass,"
                f" {values['different_tokens']} tokens differ from plain decoding's"
            )


def assisted_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        **{name: name for name in ("shape", "model", "way", "prompt_tokens", "new_tokens", "tokens_per_second")},
        **{"speed": "times as fast", "tokens_per_pass": "tokens a pass", "different_tokens": "different"},
    }
    return rows_table(rows, columns)


def repeating_model(config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model whose next token depends on the last one, as in the text, and that computes all that others do.

    Its embeddings are large next to what the layers add, and the head's row of a token is the embedding of the one
    before it.
    """
    model = random_model(config, dtype=dtype, device=device).eval()
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    period = torch.arange(FIRST, FIRST + PERIOD, device=device)
    with torch.no_grad():
        embeddings.normal_()
        head[period.roll(-1)] = embeddings[period]
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(OUTPUT_SCALE)
    return model


def repeating_text(tokens: int, device: torch.device) -> Tensor:
    """Ids, (1, tokens)."""
    return FIRST + torch.arange(tokens, device=device)[None] % PERIOD


class _Passes(BaseStreamer):
    """Counts the forward passes of one call of `generate`, which puts the prompt and then the tokens of each."""

    def __init__(self) -> None:
        self.count = -1

    def put(self, value: Tensor) -> None:
        self.count += 1

    def end(self) -> None:
        pass


def _measure(
    name: str, shape: str, prompt_tokens: int, new_tokens: int, ways: Sequence[str], rounds: int, device: torch.device
) -> dict[str, dict[str, object]]:
    """The columns of every way."""
    kind: dict[str, Any] = {"length": prompt_tokens + new_tokens, **KINDS[name]}
    dtype, sizes = inference_dtype(device), SHAPES[shape]
    layers = max(1, sizes["num_hidden_layers"] // LAYERS_PER_DRAFT)
    model = repeating_model(random_config(sizes, **kind), dtype=dtype, device=device)
    draft = repeating_model(random_config({**sizes, "num_hidden_layers": layers}, **kind), dtype=dtype, device=device)
    prompt = repeating_text(prompt_tokens, device)

    def write(way: str, **kwargs: Any) -> Tensor:
        settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **WAYS[way])
        kwargs |= {"attention_mask": torch.ones_like(prompt), "assistant_model": draft if way == "assistant" else None}
        return model.generate(prompt, generation_config=settings, **kwargs)[:, prompt_tokens:]

    tokens: dict[str, Tensor] = {}
    passes = {way: _Passes() for way in ways}

    def begin(way: str) -> None:
        tokens[way] = write(way, streamer=passes[way])

    first = {way: timed(partial(begin, way), device) for way in ways}
    times = interleaved({way: partial(write, way) for way in ways}, device, rounds=rounds)
    return {
        way: {
            **milliseconds([value / new_tokens for value in seconds]),
            "tokens_per_second": f"{new_tokens / median(seconds):.1f}",
            "speed": times_as_fast(times, seconds),
            "tokens_per_pass": f"{new_tokens / passes[way].count:.2f}",
            "different_tokens": int((tokens[way] != tokens["plain"]).sum()),
            "first_call_seconds": f"{first[way]:.1f}",
        }
        for way, seconds in times.items()
    }
