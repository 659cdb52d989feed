"""Marian (Junczys-Dowmunt et al. 2018): the post-norm encoder-decoder of Vaswani et al. with sinusoidal positions.

Embeddings that encoder and decoder share are copied: each half is a model of its own. The bias of the logits, which
transformers keeps as a constant, is a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from ..model.modeling_baichuan import BaichuanForCausalLM, BaichuanModel
from ..model.positions import SinusoidalPositions
from .architecture import Architecture, Made, Weights, never_read, stacked
from .convert import check_used_up, fill, named_weights, shared_settings


HALVES: dict[str, type[PreTrainedModel]] = {"encoder": BaichuanModel, "decoder": BaichuanForCausalLM}


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    """Of both halves."""
    config = reference.config
    return shared_settings(config) | {
        "hidden_size": config.d_model,
        "hidden_act": config.activation_function,
        "gated_mlp": False,
        "max_position_embeddings": config.max_position_embeddings,
        "position_embedding_type": "sinusoidal",
        "embedding_multiplier": config.d_model**0.5 if config.scale_embedding else 1.0,
        "norm_type": "layer_norm",
        "norm_position": "post",
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "final_norm": False,
        "initializer_range": config.init_std,
        "attention_dropout": config.attention_dropout,
        "hidden_dropout": config.dropout,
    }


def half_settings(reference: Any, half: str) -> dict[str, Any]:
    config, decodes = reference.config, half == "decoder"
    return {
        "vocab_size": config.decoder_vocab_size if decodes else config.vocab_size,
        "num_hidden_layers": getattr(config, f"{half}_layers"),
        "num_attention_heads": getattr(config, f"{half}_attention_heads"),
        "intermediate_size": getattr(config, f"{half}_ffn_dim"),
        "layer_drop": getattr(config, f"{half}_layerdrop"),
        "is_causal": decodes,
        "add_cross_attention": decodes,
        "lm_head_bias": decodes and bool(reference.final_logits_bias.any()),
    }


def half_weights(half: str) -> Weights:
    layer, theirs = "layers.N.", f"{half}.layers.N."
    return {
        "embed_tokens": f"{half}.embed_tokens",
        layer + "self_attn.W_pack": Made(stacked, tuple(f"{theirs}self_attn.{name}_proj" for name in "qkv")),
        layer + "self_attn.o_proj": theirs + "self_attn.out_proj",
        layer + "attention_output_layernorm": theirs + "self_attn_layer_norm",
        **{f"{layer}cross_attn.{name}_proj": f"{theirs}encoder_attn.{name}_proj" for name in "qkv"},
        layer + "cross_attn.o_proj": theirs + "encoder_attn.out_proj",
        layer + "cross_attention_output_layernorm": theirs + "encoder_attn_layer_norm",
        layer + "mlp.up_proj": theirs + "fc1",
        layer + "mlp.down_proj": theirs + "fc2",
        layer + "mlp_output_layernorm": theirs + "final_layer_norm",
        "lm_head": "lm_head",
        "lm_head.bias": Made(as_vector, ("final_logits_bias",)),
    }


def build(reference: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    from transformers import EncoderDecoderModel

    source, shared = named_weights(reference), architecture.settings(reference)
    halves = {
        half: fill(
            model_class,
            BaichuanConfig(**shared | half_settings(reference, half)),
            half_weights(half),
            source,
            reference,
        )
        for half, model_class in HALVES.items()
    }
    check_used_up(source, architecture, reference)
    model = EncoderDecoderModel(**halves)
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.config, name, getattr(reference.config, name))
    return model


def as_vector(config: BaichuanConfig, bias: Tensor) -> Tensor:
    return bias[0]


def is_zero(bias: Tensor) -> bool:
    return not bias.any()


def is_sinusoidal(table: Tensor) -> bool:
    """Whether a stored table of positions holds what ours are computed to, up to the precision of half a number."""
    rows, dim = table.shape
    config = BaichuanConfig(hidden_size=dim, num_attention_heads=1, position_embedding_type="sinusoidal")
    computed = SinusoidalPositions(config).embed(torch.zeros(rows, dim), torch.arange(rows))
    return torch.allclose(table.float().cpu(), computed, atol=1e-2)


MARIAN = Architecture(
    classes={"MarianMTModel": "EncoderDecoderModel"},
    settings=settings,
    weights={},
    allowed={"activation_dropout": (0.0,)},
    unused={
        "final_logits_bias": is_zero,
        "encoder.embed_positions.weight": is_sinusoidal,
        "decoder.embed_positions.weight": is_sinusoidal,
        # The same as the embeddings of both halves, unless tie_word_embeddings is False.
        "shared.weight": never_read,
    },
    build=build,
)
