"""BLOOM (Workshop et al. 2022): ALiBi, LayerNorm, a norm after the embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture, Made


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": 4 * config.hidden_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_act": "gelu_pytorch_tanh",
        "gated_mlp": False,
        # Published configs have it, though transformers' BLOOM needs no length.
        "model_max_length": getattr(config, "seq_length", 2048),
        "position_embedding_type": "alibi",
        "norm_type": "layer_norm",
        "rms_norm_eps": config.layer_norm_epsilon,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "embedding_norm": True,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.hidden_dropout,
    }


def apart(config: BaichuanConfig, interleaved: Tensor) -> Tensor:
    """Rows of query, key and value of head 0, then of head 1, ...: all queries first, then all keys, all values."""
    heads = interleaved.unflatten(0, (config.num_attention_heads, 3, config.head_dim))
    return heads.transpose(0, 1).flatten(0, 2)


LAYER = "layers.N."
BLOOM = Architecture(
    classes={
        "BloomForCausalLM": "BaichuanForCausalLM",
        "BloomModel": "BaichuanModel",
        "BloomForSequenceClassification": "BaichuanForSequenceClassification",
    },
    settings=settings,
    weights={
        "embed_tokens": "word_embeddings",
        "embedding_norm": "word_embeddings_layernorm",
        LAYER + "input_layernorm": "h.N.input_layernorm",
        LAYER + "self_attn.W_pack": Made(apart, ("h.N.self_attention.query_key_value",)),
        LAYER + "self_attn.o_proj": "h.N.self_attention.dense",
        LAYER + "post_attention_layernorm": "h.N.post_attention_layernorm",
        LAYER + "mlp.up_proj": "h.N.mlp.dense_h_to_4h",
        LAYER + "mlp.down_proj": "h.N.mlp.dense_4h_to_h",
        "norm": "ln_f",
        "lm_head": "lm_head",
        "score": "score",
    },
    allowed={"apply_residual_connection_post_layernorm": (False,)},
)
