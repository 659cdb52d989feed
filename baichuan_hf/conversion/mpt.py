"""MPT (MosaicML 2023): ALiBi, LayerNorm, no bias anywhere."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .architecture import Architecture


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.expansion_ratio * config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "hidden_act": "gelu",
        "gated_mlp": False,
        "model_max_length": config.max_seq_len,
        "position_embedding_type": "alibi",
        "norm_type": "layer_norm",
        "rms_norm_eps": config.layer_norm_epsilon,
        # transformers' MPT uses the one probability for all, and none on the embeddings.
        "attention_dropout": config.attn_config.attn_pdrop,
        "hidden_dropout": config.attn_config.attn_pdrop,
    }


LAYER = "layers.N."
MPT = Architecture(
    classes={
        "MptForCausalLM": "BaichuanForCausalLM",
        "MptModel": "BaichuanModel",
        "MptForSequenceClassification": "BaichuanForSequenceClassification",
    },
    settings=settings,
    weights={
        "embed_tokens": "wte",
        LAYER + "input_layernorm": "blocks.N.norm_1",
        LAYER + "self_attn.W_pack": "blocks.N.attn.Wqkv",
        LAYER + "self_attn.o_proj": "blocks.N.attn.out_proj",
        LAYER + "post_attention_layernorm": "blocks.N.norm_2",
        LAYER + "mlp.up_proj": "blocks.N.ffn.up_proj",
        LAYER + "mlp.down_proj": "blocks.N.ffn.down_proj",
        "norm": "norm_f",
        "lm_head": "lm_head",
        "score": "score",
    },
    # Some of them transformers' MPT ignores, but the model that the config describes has them.
    allowed={
        "attn_config.attn_type": ("multihead_attention",),
        "attn_config.alibi": (True,),
        "attn_config.alibi_bias_max": (8,),
        "attn_config.clip_qkv": (None,),
        "attn_config.prefix_lm": (False,),
        "attn_config.qk_ln": (False,),
        "attn_config.softmax_scale": (None,),
        "expansion_ratio": (4,),
        "logit_scale": (None,),
        "no_bias": (True,),
    },
)
