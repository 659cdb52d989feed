"""The values of the config's fields, and every two of different fields: which go together, which are refused.

The values of a family are the keys of its mapping, so that a new component enters by itself. To write the table:

    python -m tests.helpers.pairs tests/benchmarks/pair_matrix.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from baichuan_hf import BaichuanConfig
from baichuan_hf.model.attention_types import ATTENTIONS
from baichuan_hf.model.feed_forward import FEED_FORWARDS
from baichuan_hf.model.initialization import INITIALIZERS
from baichuan_hf.model.lm_head import LM_HEADS
from baichuan_hf.model.normalization import NORMALIZATIONS
from baichuan_hf.model.positions import POSITIONS
from baichuan_hf.model.residuals import RESIDUALS


# Wide weights: with the usual 0.02 all tokens look alike, and a wrong one would not show.
BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "position_embedding_type": "rope",
    "projected_length": 5,
    "num_random_features": 24,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "normalize_lm_head": False,
    "initializer_range": 0.25,
}

FAMILIES = {
    "norm_type": NORMALIZATIONS,
    "norm_position": RESIDUALS,
    "gated_mlp": FEED_FORWARDS,
    "position_embedding_type": POSITIONS,
    "attention_type": ATTENTIONS,
    "initializer_type": INITIALIZERS,
    "normalize_lm_head": LM_HEADS,
}
NUMBERS_AND_SWITCHES: dict[str, list[Any]] = {
    "hidden_act": ["silu", "relu", "gelu", "gelu_new", "sigmoid", "relu2"],
    "attention_bias": [False, True],
    "mlp_bias": [False, True],
    "norm_bias": [False, True],
    "embedding_norm": [False, True],
    "final_norm": [True, False],
    "type_vocab_size": [0, 3],
    "is_causal": [True, False],
    "add_pooling_layer": [False, True],
    "add_cross_attention": [False, True],
    "cross_attention_hidden_size": [None, 24],
    "sliding_window": [None, 3],
    "layer_types": [None, ["full_attention", "sliding_attention"]],
    "num_global_tokens": [0, 2],
    "num_key_value_heads": [4, 2, 1],
    "head_dim": [8, 12],
    "num_local_experts": [0, 4],
    "num_experts_per_tok": [2, 1],
    "moe_layer_interval": [1, 2],
    "z_loss_weight": [0.0, 0.1],
    "attention_dropout": [0.0, 0.3],
    "hidden_dropout": [0.0, 0.3],
    "layer_drop": [0.0, 0.5],
    "rope_parameters": [
        None,
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    "alibi_scaling": [
        None,
        {"alibi_type": "linear", "factor": 2.0},
        {"alibi_type": "ntk", "factor": 4.0},
        {"alibi_type": "dynamic"},
    ],
    "tie_word_embeddings": [False, True],
    "lm_head_bias": [False, True],
    "embedding_multiplier": [1.0, 3.0],
}

# Sizes of one model or another, what only a head or an image needs, and what every model of transformers has.
NOT_VARIED = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "model_max_length", "projected_length", "num_random_features", "num_decoder_layers"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "image_size", "patch_size", "num_channels"),
    *("classifier_pooling", "rms_norm_eps", "initializer_range", "router_aux_loss_coef", "output_router_logits"),
    *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "tokenizer_class"),
}

# What a value needs beside it to mean anything, unless the other value of a pair says otherwise.
NEEDS: dict[tuple[str, Any], dict[str, Any]] = {
    ("norm_type", "deep_norm"): {"norm_position": "post"},
    ("initializer_type", "deep_net"): {"norm_type": "deep_norm", "norm_position": "post"},
    ("attention_type", "linformer"): {"is_causal": False, "position_embedding_type": "none"},
    ("attention_type", "performer"): {"is_causal": False},
    ("num_global_tokens", 2): {"is_causal": False, "sliding_window": 3},
    ("cross_attention_hidden_size", 24): {"add_cross_attention": True},
    ("num_experts_per_tok", 1): {"num_local_experts": 4},
    ("moe_layer_interval", 2): {"num_local_experts": 4},
}
NEEDS_OF_ANY: dict[str, dict[str, Any]] = {
    "layer_types": {"sliding_window": 3},
    "rope_parameters": {"position_embedding_type": "rope"},
    "alibi_scaling": {"position_embedding_type": "alibi"},
}


@dataclass(frozen=True)
class Value:
    """One value of one field, and the values of other fields that it needs."""

    field: str
    value: Any = field(hash=False)
    needs: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, dict):
            value = next(iter(value.values()))  # the kind of scaling
        if isinstance(value, list):
            value = "mixed"
        return f"{self.field}={value}"


def axes() -> dict[str, list[Value]]:
    """The values of every varied field, the default among them; read from the mappings now."""
    values = {name: list(mapping) for name, mapping in FAMILIES.items()} | NUMBERS_AND_SWITCHES
    return {name: [_value(name, value) for value in found] for name, found in values.items()}


def _value(name: str, value: Any) -> Value:
    if isinstance(value, dict | list):
        return Value(name, value, NEEDS_OF_ANY[name])
    return Value(name, value, NEEDS.get((name, value), {}))


def all_values() -> list[Value]:
    return [value for values in axes().values() for value in values]


def all_pairs() -> Iterator[tuple[Value, Value]]:
    """Every two values of different fields."""
    for first, second in combinations(axes().values(), 2):
        for a in first:
            for b in second:
                yield a, b


def fields_of(*values: Value) -> dict[str, Any]:
    """The values, what they need where none of them says otherwise, and the sizes."""
    fields = dict(BASE)
    for value in values:
        fields |= value.needs
    return fields | {value.field: value.value for value in values}


def build_config(*values: Value, **sizes: int) -> BaichuanConfig | str:
    """The config of these values together, or the message of the error that refuses them."""
    try:
        return BaichuanConfig(**fields_of(*values) | sizes)
    except (ValueError, StrictDataclassError) as error:
        return str(error.__cause__ or error)


def identity(config: BaichuanConfig) -> str:
    """Equal for values that make the same model, as a default beside another value does."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


@cache
def known_identities() -> set[str]:
    """Of the models of no and of one value."""
    configs = [build_config(), *(build_config(value) for value in all_values())]
    return {identity(config) for config in configs if not isinstance(config, str)}


def names_both(message: str, first: Value, second: Value) -> bool:
    """Whether a refusal names a field of either value: its own, or one that it needs."""
    named = [{name for name in (value.field, *value.needs) if name in message} for value in (first, second)]
    return all(named) and len(named[0] | named[1]) > 1


def render(check: Callable[[BaichuanConfig], None]) -> tuple[str, list[str]]:
    """The table as Markdown, and what is wrong: pairs whose config fails `check`, refusals that do not name both."""
    values = all_values()
    numbers = {str(value): index for index, value in enumerate(values, start=1)}
    cells: dict[tuple[int, int], str] = {}
    refusals: dict[str, list[str]] = {}
    checked: dict[str, str] = {}
    failures = []
    for group in [*((value,) for value in values), *all_pairs()]:
        name = " with ".join(map(str, group))
        config = build_config(*group)
        if isinstance(config, str):
            refusals.setdefault(config, []).append(name)
            symbol = "✗"
            if len(group) == 1 or not names_both(config, *group):
                failures.append(f"{name}: {config}")
        else:
            key = identity(config)
            if key not in checked:
                try:
                    check(config)
                    checked[key] = "✓"
                except Exception as error:
                    checked[key] = "!"
                    failures.append(f"{name}: {type(error).__name__}: {error}")
            symbol = checked[key]
        if len(group) == 2:
            cells[numbers[str(group[0])], numbers[str(group[1])]] = symbol
    return _markdown(values, cells, refusals, len(checked)), failures


def _markdown(
    values: list[Value], cells: dict[tuple[int, int], str], refusals: dict[str, list[str]], models: int
) -> str:
    counts = Counter(cells.values())
    lines = [
        "# Every two values of different fields",
        "",
        f"{len(values)} values of {len(axes())} fields make {len(cells)} pairs. {counts['✓']} build a model ({models}"
        " different ones) that keeps the invariants of `tests/helpers/invariants.py`;"
        f" {counts['✗']} are refused by an error that names both and says what to do.",
        "",
        "✓ built and checked, ✗ refused, blank: the same field. The columns are the rows' numbers. Some values bring"
        " along what they need, as `linformer` an encoder. Written by `python -m tests.helpers.pairs`.",
        "",
        "|  |  |" + "|".join(str(index) for index in range(1, len(values) + 1)) + "|",
        "|---|---|" + "---|" * len(values),
    ]
    for row, value in enumerate(values, start=1):
        columns = range(1, len(values) + 1)
        symbols = [cells.get((row, column), cells.get((column, row), " ")) for column in columns]
        lines.append(f"|{row}|`{value}`|" + "|".join(symbols) + "|")
    lines += ["", "## What is refused, and how", ""]
    for message, names in refusals.items():
        lines += [f"- {message}", *(f"    - {name}" for name in names)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from .invariants import check_invariants

    logging.disable_progress_bar()
    table, wrong = render(check_invariants)
    Path(sys.argv[1]).write_text(table, encoding="utf-8")
    sys.exit("\n".join(wrong) or None)
