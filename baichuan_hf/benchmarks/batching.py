"""`baichuan-hf bench batching`: continuous batching of many requests, in turns with the Llama of the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from .choices import SHAPES, check_choices
from .random_models import MODELS, PEER, compared_models
from .rows import append_rows, is_measured, machine, rows_table
from .timing import milliseconds, times_as_fast


TWINS = (PEER, "baichuan")  # models of the same weights
# The first needs no further package and runs on a CPU, too; flash attention knows no ALiBi.
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
# Tokens of one forward pass, and of the cache that are given out together: transformers' own, which kernels want.
TOKENS_PER_PASS, PAGE = 512, 256
# The shortest prompt is a 32nd of the longest, and what is written behind it an eighth of the most.
PROMPT_SPREAD, WRITTEN_SPREAD = 32, 8


class Request(NamedTuple):
    """What one user sends."""

    prompt: list[int]
    new_tokens: int


def measure_batching(
    rows: Path,
    *,
    shape: str = "7b",
    models: Sequence[str] = TWINS,
    attention: str = "sdpa",
    cuda_graph: bool = False,
    requests: int = 64,
    prompt_tokens: int = 1024,
    new_tokens: int = 64,
    rounds: int = 3,
    device: torch.device,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for every model: tokens a second that transformers' continuous batching writes for requests that
    come all at once, greedily, from the first request to the last token. The cache has room for all of them.

    Args:
        rows: ROWS.csv.
        shape: name in SHAPES.
        models: names in MODELS; the first is the one that the others are held against.
        attention: name in ATTENTIONS.
        cuda_graph: whether passes are recorded as CUDA graphs; else transformers decides, which records those of flash
            attention on a GPU.
        requests: how many.
        prompt_tokens: of the longest; lengths are spread evenly, from a 32nd of that on.
        new_tokens: at most to write for a request, at least an eighth of that.
        rounds: of all requests that count, after one that does not.
        device: where to run.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such shape, model or attention, or a CUDA graph is asked for without a CUDA device.
        RuntimeError: a request failed.
    """
    check_choices("shape", [shape], SHAPES)
    check_choices("model", models, MODELS)
    check_choices("attention", [attention], ATTENTIONS)
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"--cuda-graph: needs a CUDA device, and --device is {device.type}.")
    case = {
        **{"shape": shape, "attention": attention, "cuda_graph": int(cuda_graph), "requests": requests},
        **{"prompt_tokens": prompt_tokens, "new_tokens": new_tokens},
    }
    if is_measured(rows, case, models):
        return
    built, _ = compared_models(shape, models, prompt_tokens + new_tokens, device)
    sent = mixed_requests(SHAPES[shape]["vocab_size"], requests, prompt_tokens, new_tokens)
    settings = batching_config(sent, cuda_graph=cuda_graph)
    times: dict[str, list[float]] = {name: [] for name in built}
    written = {}
    for model in built.values():
        model.set_attn_implementation(_paged(attention))
    for turn in range(rounds + 1):
        for name, model in built.items():
            seconds, written[name] = serve(model, sent, settings)
            if turn:
                times[name].append(seconds)
    # In bfloat16 a near tie can go either way.
    equal = _equal(*(written[twin] for twin in TWINS)) if set(TWINS) <= set(models) else ""
    for name, values in times.items():
        row = {
            **{**case, "model": name, **milliseconds(values)},
            "tokens_per_second": f"{sum(map(len, written[name])) / median(values):.1f}",
            "speed": times_as_fast(times, values),
            "equal_requests": equal if name in TWINS else "",
        }
        append_rows(rows, [{**row, **machine(device), "command": command}])
        report(f"{name}, {requests} requests: {row['tokens_per_second']} tokens/s, {row['speed']} times as fast")


def batching_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        **{name: name for name in ("shape", "model", "attention", "requests", "ms")},
        **{"cuda_graph": "graph", "tokens_per_second": "tokens/s", "speed": "times as fast"},
        "equal_requests": "equal",
    }
    return rows_table(rows, columns)


def mixed_requests(vocab_size: int, count: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    """Requests of random ids and lengths, the same in every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    lengths = draw(max(1, prompt_tokens // PROMPT_SPREAD), prompt_tokens + 1, count)
    news = draw(max(1, new_tokens // WRITTEN_SPREAD), new_tokens + 1, count)
    return [Request(draw(3, vocab_size, length), new) for length, new in zip(lengths, news, strict=True)]


def batching_config(requests: Sequence[Request], *, cuda_graph: bool = False) -> ContinuousBatchingConfig:
    """A cache with room for all of them: by default it takes most of the memory there is."""
    pages = sum(-(-(len(request.prompt) + request.new_tokens) // PAGE) for request in requests)
    known = ContinuousBatchingConfig.__dataclass_fields__
    return ContinuousBatchingConfig(
        num_blocks=pages,
        max_batch_tokens=TOKENS_PER_PASS,
        safety_margin=0.0,
        use_cuda_graph=cuda_graph or None,
        **({"auto_switch_to_flash": False} if "auto_switch_to_flash" in known else {}),
    )


def serve(
    model: PreTrainedModel, requests: Sequence[Request], settings: ContinuousBatchingConfig
) -> tuple[float, list[list[int]]]:
    """Seconds from the first request to the last answer, and the answers.

    Raises:
        RuntimeError: a request failed.
    """
    # No end token, so that every answer has its length.
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    answers: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=settings
    ) as manager:
        start = time.perf_counter()
        names = [manager.add_request(request.prompt, max_new_tokens=request.new_tokens) for request in requests]
        while len(answers) < len(requests):
            answer = manager.get_result(timeout=1)
            if answer is None and manager.is_running():
                continue
            if answer is None or answer.error is not None:
                reason = "the scheduler's thread ended" if answer is None else answer.error
                raise RuntimeError(f"Of {len(requests)} requests {len(answers)} were answered, then: {reason}")
            answers[answer.request_id] = answer.generated_tokens
        seconds = time.perf_counter() - start
    return seconds, [answers[name] for name in names]


def _equal(one: list[list[int]], other: list[list[int]]) -> str:
    """The share of requests that both answer with the same tokens."""
    equal = [left == right for left, right in zip(one, other, strict=True)]
    return f"{sum(equal) / len(equal):.3f}"


def _paged(attention: str) -> str:
    """The name that is left as it is. transformers 5.16 and 5.17 put flash attention, where it is installed, in the
    place of what has no `paged|` before its name; in 5.23 a setting forbids it."""
    name = f"paged|{attention}"
    return name if name in AttentionInterface().valid_keys() else attention
