"""Llama, Mistral and Mixtral: the shape that Baichuan itself has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from . import weight_files
from .architecture import Architecture, Made, Weights, check_setting, stacked
from .weight_files import Weight


def classes(prefix: str) -> dict[str, str]:
    heads = ("ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    return {prefix + head: f"Baichuan{head}" for head in heads}


def settings(reference: PreTrainedModel) -> dict[str, Any]:
    config = reference.config
    fields = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rope_parameters",
        "rms_norm_eps",
        "attention_dropout",
        # Not all of the three have these.
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "num_local_experts",
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "output_router_logits",
    )
    values = {name: getattr(config, name) for name in fields if getattr(config, name, None) is not None}
    return {"position_embedding_type": "rope", **values}


def mistral_settings(reference: PreTrainedModel) -> dict[str, Any]:
    values = settings(reference)
    # transformers' Mistral ignores them, and slides in all layers or none.
    kind = "sliding_attention" if values.get("sliding_window") else "full_attention"
    check_setting(reference.config, "layer_types", None, [kind] * values["num_hidden_layers"])
    return values


def baichuan_weights(weights: Mapping[str, Weight], *, prefix: str, fused: bool) -> dict[str, Weight]:
    """A Llama's weights that are read later, by our names.

    Args:
        prefix: of the base model in the reference, with its dot.
        fused: whether our q, k and v are the one matrix W_pack.
    """
    made = {}
    for name, weight in weights.items():
        name = "model." + name.removeprefix(prefix) if name.startswith(prefix) else name
        made[name] = weight
    for name in [name for name in made if fused and ".q_proj." in name]:
        names = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
        if made.keys() >= set(names):
            made[name.replace("q_proj", "W_pack")] = weight_files.stacked([made.pop(part) for part in names])
    return made


LAYER = "layers.N."
ATTENTION = LAYER + "self_attn."
WEIGHTS: Weights = {
    "embed_tokens": "embed_tokens",
    ATTENTION + "W_pack": Made(stacked, tuple(f"{ATTENTION}{name}_proj" for name in "qkv")),
    **{f"{ATTENTION}{name}_proj": f"{ATTENTION}{name}_proj" for name in "qkvo"},
    **{f"{LAYER}mlp.{name}_proj": f"{LAYER}mlp.{name}_proj" for name in ("gate", "up", "down")},
    LAYER + "mlp.gate": LAYER + "mlp.gate",
    LAYER + "mlp.experts": LAYER + "mlp.experts",
    LAYER + "input_layernorm": LAYER + "input_layernorm",
    LAYER + "post_attention_layernorm": LAYER + "post_attention_layernorm",
    "norm": "norm",
    "lm_head": "lm_head",
    "score": "score",
    "qa_outputs": "qa_outputs",
}

LLAMA = Architecture(classes("Llama"), settings, WEIGHTS)
MISTRAL = Architecture(classes("Mistral"), mistral_settings, WEIGHTS)
MIXTRAL = Architecture(classes("Mixtral"), mistral_settings, WEIGHTS, allowed={"router_jitter_noise": (0.0,)})
