"""BERT (Devlin et al. 2019): a post-norm encoder with learned positions and segments."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .architecture import Architecture, Made, Weights, check_setting, has_pooler, never_read, stacked


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    check_setting(config, "classifier_dropout", None, config.hidden_dropout_prob)
    return encoder_settings(reference) | {"max_position_embeddings": config.max_position_embeddings}


def encoder_settings(reference: PreTrainedModel) -> dict[str, Any]:
    """What the descendants of BERT have in common with it."""
    config = reference.config
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "gated_mlp": False,
        "position_embedding_type": "learned",
        "type_vocab_size": config.type_vocab_size,
        "norm_type": "layer_norm",
        "norm_position": "post",
        "rms_norm_eps": config.layer_norm_eps,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "embedding_norm": True,
        "final_norm": False,
        "is_causal": False,
        "add_pooling_layer": has_pooler(reference),
        "attention_dropout": config.attention_probs_dropout_prob,
        "hidden_dropout": config.hidden_dropout_prob,
    }


LAYER, THEIRS = "layers.N.", "encoder.layer.N."
SELF = THEIRS + "attention.self."
ENCODER_WEIGHTS: Weights = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_token_types": "embeddings.token_type_embeddings",
    "positions.embedding": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    LAYER + "self_attn.W_pack": Made(stacked, (SELF + "query", SELF + "key", SELF + "value")),
    LAYER + "self_attn.o_proj": THEIRS + "attention.output.dense",
    LAYER + "attention_output_layernorm": THEIRS + "attention.output.LayerNorm",
    LAYER + "mlp.up_proj": THEIRS + "intermediate.dense",
    LAYER + "mlp.down_proj": THEIRS + "output.dense",
    LAYER + "mlp_output_layernorm": THEIRS + "output.LayerNorm",
    "pooler": "pooler.dense",
}

BERT = Architecture(
    classes={
        "BertForMaskedLM": "BaichuanForMaskedLM",
        "BertModel": "BaichuanModel",
        "BertForSequenceClassification": "BaichuanForSequenceClassification",
        "BertForTokenClassification": "BaichuanForTokenClassification",
        "BertForQuestionAnswering": "BaichuanForQuestionAnswering",
    },
    settings=settings,
    weights=ENCODER_WEIGHTS
    | {
        "lm_head.dense": "cls.predictions.transform.dense",
        "lm_head.norm": "cls.predictions.transform.LayerNorm",
        "lm_head.decoder": "cls.predictions.decoder",
        "score": "classifier",
        "qa_outputs": "qa_outputs",
    },
    allowed={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        # transformers had these up to version 4, and ignores them now.
        "position_embedding_type": ("absolute",),
    },
    # The same as the decoder's bias, unless tie_word_embeddings is False.
    unused={"cls.predictions.bias": never_read},
)
