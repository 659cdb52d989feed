"""Longformer (Beltagy et al. 2020): BERT with a window, and first tokens that see all and are seen by all."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture, Made, check_setting, never_read
from .bert import ENCODER_WEIGHTS, LAYER, SELF, encoder_settings


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    windows = config.attention_window
    check_setting(config, "attention_window", [windows[0]] * len(windows))
    if type(reference).__name__ == "LongformerForMaskedLM":
        # Its head has this activation, whatever the config says; ours has that of the layers.
        check_setting(config, "hidden_act", "gelu")
    return encoder_settings(reference) | {
        "max_position_embeddings": config.max_position_embeddings - unused_positions(config),
        "sliding_window": windows[0] // 2,
        # With transformers' Longformer each call says which tokens are global; its classifier takes the first.
        "num_global_tokens": 1,
    }


def unused_positions(config: Any) -> int:
    """Rows of the position table in front of the first token's, as in RoBERTa."""
    return config.pad_token_id + 1


def used_positions(config: BaichuanConfig, table: Tensor) -> Tensor:
    return table[unused_positions(config) :]


LONGFORMER = Architecture(
    classes={"LongformerForMaskedLM": "BaichuanForMaskedLM", "LongformerModel": "BaichuanModel"},
    settings=settings,
    weights=ENCODER_WEIGHTS
    | {
        "positions.embedding": Made(used_positions, ("embeddings.position_embeddings",)),
        LAYER + "self_attn.q_global_proj": SELF + "query_global",
        LAYER + "self_attn.k_global_proj": SELF + "key_global",
        LAYER + "self_attn.v_global_proj": SELF + "value_global",
        "lm_head.dense": "lm_head.dense",
        "lm_head.norm": "lm_head.layer_norm",
        "lm_head.decoder": "lm_head.decoder",
    },
    unused={"lm_head.bias": never_read},
)
