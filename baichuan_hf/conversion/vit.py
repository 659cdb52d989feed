"""ViT (Dosovitskiy et al. 2021): a pre-norm encoder of patches, with a class token and learned positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture, Made, check_setting, has_pooler, stacked


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    if has_pooler(reference):
        check_setting(config, "pooler_act", "tanh")
        check_setting(config, "pooler_output_size", None, config.hidden_size)
    image_size, patch_size = square(config, "image_size"), square(config, "patch_size")
    values = {
        "vocab_size": 1,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "gated_mlp": False,
        "max_position_embeddings": 1 + (image_size // patch_size) ** 2,
        "position_embedding_type": "learned",
        "norm_type": "layer_norm",
        "rms_norm_eps": config.layer_norm_eps,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "is_causal": False,
        "add_pooling_layer": has_pooler(reference),
        "attention_dropout": config.attention_probs_dropout_prob,
        "hidden_dropout": config.hidden_dropout_prob,
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": config.num_channels,
    }
    if type(reference).__name__ == "ViTModel":
        values |= {"id2label": {}, "label2id": {}}
    return values


def square(config: Any, name: str) -> int:
    """The side of an image or patch."""
    size = getattr(config, name)
    if isinstance(size, int):
        return size
    check_setting(config, name, [size[0]] * 2, (size[0],) * 2)
    return size[0]


def without_batch(config: BaichuanConfig, positions: Tensor) -> Tensor:
    return positions[0]


LAYER = "layers.N."
VIT = Architecture(
    # Without labels our classifier returns what it would classify.
    classes={
        "ViTForImageClassification": "BaichuanForImageClassification",
        "ViTModel": "BaichuanForImageClassification",
    },
    settings=settings,
    weights={
        "embed_tokens.cls_token": "embeddings.cls_token",
        "embed_tokens.projection": "embeddings.patch_embeddings.projection",
        "positions.embedding.weight": Made(without_batch, ("embeddings.position_embeddings",)),
        LAYER + "input_layernorm": LAYER + "layernorm_before",
        LAYER + "self_attn.W_pack": Made(stacked, tuple(f"{LAYER}attention.{name}_proj" for name in "qkv")),
        LAYER + "self_attn.o_proj": LAYER + "attention.o_proj",
        LAYER + "post_attention_layernorm": LAYER + "layernorm_after",
        LAYER + "mlp.up_proj": LAYER + "mlp.fc1",
        LAYER + "mlp.down_proj": LAYER + "mlp.fc2",
        "norm": "layernorm",
        "pooler": "pooler.dense",
        "classifier": "classifier",
    },
    allowed={"qkv_bias": (True,)},
)
