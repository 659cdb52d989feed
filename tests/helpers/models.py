"""Tiny configurations and the stored numbers of the original code."""

from pathlib import Path
from typing import Any

import pytest


REPOSITORY = Path(__file__).parents[2]

# The choices of the original families and grouped-query attention, as overrides of `tiny_config`.
FAMILIES: dict[str, dict[str, Any]] = {
    "rope": {},
    "rope-normhead": {"normalize_lm_head": True},
    "alibi": {"position_embedding_type": "alibi"},
    "alibi-normhead": {"position_embedding_type": "alibi", "normalize_lm_head": True},
    "gqa": {"num_key_value_heads": 2},
    "gqa-normhead": {"num_key_value_heads": 2, "normalize_lm_head": True},
}


def tiny_config(**overrides: Any):
    """A `BaichuanConfig` of 2 layers, hidden size 64, 4 heads and 128 words, changed by `overrides`."""
    from baichuan_hf import BaichuanConfig

    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "position_embedding_type": "rope",
        "normalize_lm_head": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return BaichuanConfig(**(sizes | overrides))


def golden_folder(name: str) -> Path:
    """The folder `name` of stored numbers: of the full set beside the checkout, else of the selection in it.

    Skips the calling test when neither has it.
    """
    candidates = [REPOSITORY.parent / "shared" / "golden" / name, REPOSITORY / "tests" / "golden" / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(f"golden data {name!r} is in neither {' nor '.join(map(str, candidates))}")
