"""The encoder of T5 (Raffel et al. 2020), versions 1.0 (ReLU) and 1.1 (GeGLU): relative positions, scores not scaled.

transformers' T5 has the same dropout inside the feed-forward layers and after the last norm, where ours has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture, Made
from .convert import build_model


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "head_dim": config.d_kv,
        "hidden_act": config.dense_act_fn,
        "gated_mlp": config.is_gated_act,
        # Published configs have it, though transformers' T5 needs no length.
        "max_position_embeddings": getattr(config, "n_positions", 512),
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "rms_norm_eps": config.layer_norm_epsilon,
        "is_causal": False,
        "attention_dropout": config.dropout_rate,
        "hidden_dropout": config.dropout_rate,
    }


def stacked_unscaled(config: BaichuanConfig, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """With queries that undo the division of the scores by sqrt(head_dim)."""
    return torch.cat([query * config.head_dim**0.5, key, value])


def build(reference: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """With the feed-forward layers' second matrix, which has another name where there is a gate."""
    inner = "wi_1" if reference.config.is_gated_act else "wi"
    weights = {**architecture.weights, LAYER + "mlp.up_proj": f"{MLP}.DenseReluDense.{inner}"}
    return build_model(reference, replace(architecture, weights=weights))


LAYER, ATTENTION, MLP = "layers.N.", "encoder.block.N.layer.0", "encoder.block.N.layer.1"
T5 = Architecture(
    classes={"T5EncoderModel": "BaichuanModel"},
    settings=settings,
    weights={
        "embed_tokens": "shared",
        "positions.relative_attention_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        LAYER + "input_layernorm": f"{ATTENTION}.layer_norm",
        LAYER + "self_attn.W_pack": Made(stacked_unscaled, tuple(f"{ATTENTION}.SelfAttention.{x}" for x in "qkv")),
        LAYER + "self_attn.o_proj": f"{ATTENTION}.SelfAttention.o",
        LAYER + "post_attention_layernorm": f"{MLP}.layer_norm",
        LAYER + "mlp.gate_proj": f"{MLP}.DenseReluDense.wi_0",
        LAYER + "mlp.down_proj": f"{MLP}.DenseReluDense.wo",
        "norm": "encoder.final_layer_norm",
    },
    build=build,
)
