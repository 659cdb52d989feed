"""`baichuan-hf bench cpu`: a model on the CPU, next to the model of transformers that its weights were copied from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..conversion import from_transformers
from .choices import check_choices
from .ratio import SHAPES
from .rows import append_rows, machine, rows_table
from .timing import interleaved, milliseconds


VOCABULARY = 6144
# Tokens of the text that is read, of the one that is written on, and of what is written.
READ, PROMPT, WRITTEN = 512, 64, 32
CPU = torch.device("cpu")


def _llama(sizes: dict[str, int]) -> PreTrainedConfig:
    return LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=2 * READ)


def _bloom(sizes: dict[str, int]) -> PreTrainedConfig:
    return BloomConfig(vocab_size=VOCABULARY, **_of_old(sizes))


def _mpt(sizes: dict[str, int]) -> PreTrainedConfig:
    layers, heads = sizes["num_hidden_layers"], sizes["num_attention_heads"]
    return MptConfig(
        vocab_size=VOCABULARY, d_model=sizes["hidden_size"], n_layers=layers, n_heads=heads, max_seq_len=2 * READ
    )


def _of_old(sizes: dict[str, int]) -> dict[str, int]:
    names = {"hidden_size": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    return {names[name]: size for name, size in sizes.items() if name in names}


# By name: with rotary positions the one, with ALiBi the others.
PEERS: dict[str, Callable[[dict[str, int]], PreTrainedConfig]] = {"llama": _llama, "bloom": _bloom, "mpt": _mpt}


def measure_cpu(
    rows: Path,
    *,
    peers: Sequence[str] = tuple(PEERS),
    shape: str = "100m",
    rounds: int = 10,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append two rows for every peer and pass: its own and ours, with float32 weights copied from it, in turns.

    The passes: `forward` of 512 tokens; `generate`, greedy, 32 tokens behind 64 with a dynamic cache; `training`, a
    step of AdamW on 512 tokens.

    Args:
        rows: ROWS.csv.
        peers: names in PEERS.
        shape: name in SHAPES.
        rounds: of which the median counts.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ValueError: there is no such peer or shape, or the two do not compute the same.
    """
    check_choices("peer", peers, PEERS)
    check_choices("shape", [shape], SHAPES)
    origin = {**machine(CPU), "threads": torch.get_num_threads(), "command": command}
    for name in peers:
        torch.manual_seed(0)
        peer = AutoModelForCausalLM.from_config(PEERS[name](SHAPES[shape]), dtype=torch.float32).eval()
        models = {name: peer, "baichuan-hf": from_transformers(peer).eval()}
        text = torch.randint(3, VOCABULARY, (1, READ))
        _check_equal(peer, models["baichuan-hf"], text)
        for phase, actions in _passes(models, text):
            times = interleaved(actions, CPU, rounds=rounds)
            for model, seconds in times.items():
                speed = median(theirs / ours for theirs, ours in zip(times[name], seconds, strict=True))
                row = {
                    "peer": name,
                    "model": model,
                    "shape": shape,
                    "pass": phase,
                    **milliseconds(seconds),
                    "speed": f"{speed:.3f}",
                }
                append_rows(rows, [{**row, **origin}])
                report(f"{name}, {phase}, {model}: {row['ms']} ms")


def cpu_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {"peer": "peer", "pass": "pass", "model": "model", "ms": "ms", "speed": "against the peer"}
    return rows_table(rows, columns)


def _check_equal(theirs: PreTrainedModel, ours: PreTrainedModel, text: Tensor) -> None:
    with torch.no_grad():
        expected, found = (model(input_ids=text).logits for model in (theirs, ours))
    difference = (expected - found).abs().max().item()
    if difference > 1e-3 or not torch.equal(_write(theirs, text), _write(ours, text)):
        raise ValueError(f"The models do not compute the same: a logit differs by {difference:.1e}.")


def _passes(models: dict[str, PreTrainedModel], text: Tensor) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    # The weights change in the last one.
    yield "forward", {name: partial(_read, model, text) for name, model in models.items()}
    yield "generate", {name: partial(_write, model, text) for name, model in models.items()}
    steps: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        steps[name] = partial(_train, model.train(), optimizer, text)
    yield "training", steps


@torch.inference_mode()
def _read(model: PreTrainedModel, text: Tensor) -> None:
    model(input_ids=text, use_cache=False)


def _write(model: PreTrainedModel, text: Tensor) -> Tensor:
    prompt = text[:, :PROMPT]
    mask = torch.ones_like(prompt)
    lengths = {"min_new_tokens": WRITTEN, "max_new_tokens": WRITTEN}
    return model.generate(prompt, attention_mask=mask, pad_token_id=0, do_sample=False, **lengths)


def _train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, text: Tensor) -> None:
    model(input_ids=text, labels=text, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
