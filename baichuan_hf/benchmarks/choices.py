"""What several of the benchmarks let choose from, and the error for what is not among it."""

from __future__ import annotations

from collections.abc import Collection, Iterable


# The proportions of Baichuan2-7B and of Baichuan2-13B, and but for the first their vocabulary; "1b" has 1.1 billion
# weights.
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "1b": {
        "vocab_size": 125696,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
    },
    "7b": {
        "vocab_size": 125696,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "vocab_size": 125696,
        "hidden_size": 5120,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


def check_choices(option: str, chosen: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError, naming the option and what there is, for the first that is not known."""
    for name in chosen:
        if name not in known:
            raise ValueError(f"--{option} {name!r}: unknown; there are {', '.join(known)}.")
