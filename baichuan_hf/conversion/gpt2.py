"""GPT-2 (Radford et al. 2019): pre-norm with LayerNorm, learned positions; its linear layers are stored transposed."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .architecture import Architecture, Made, check_equal, transposed


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    check_equal(config, "embd_pdrop", "resid_pdrop")
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_act": config.activation_function,
        "gated_mlp": False,
        "max_position_embeddings": config.n_positions,
        "position_embedding_type": "learned",
        "norm_type": "layer_norm",
        "rms_norm_eps": config.layer_norm_epsilon,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "attention_dropout": config.attn_pdrop,
        "hidden_dropout": config.resid_pdrop,
    }


LAYER = "layers.N."
GPT2 = Architecture(
    classes={
        "GPT2LMHeadModel": "BaichuanForCausalLM",
        "GPT2Model": "BaichuanModel",
        "GPT2ForSequenceClassification": "BaichuanForSequenceClassification",
    },
    settings=settings,
    weights={
        "embed_tokens": "wte",
        "positions.embedding": "wpe",
        LAYER + "input_layernorm": "h.N.ln_1",
        LAYER + "self_attn.W_pack": Made(transposed, ("h.N.attn.c_attn",)),
        LAYER + "self_attn.o_proj": Made(transposed, ("h.N.attn.c_proj",)),
        LAYER + "post_attention_layernorm": "h.N.ln_2",
        LAYER + "mlp.up_proj": Made(transposed, ("h.N.mlp.c_fc",)),
        LAYER + "mlp.down_proj": Made(transposed, ("h.N.mlp.c_proj",)),
        "norm": "ln_f",
        "lm_head": "lm_head",
        "score": "score",
    },
    allowed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
)
