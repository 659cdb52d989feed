"""What a model of some configuration holds and costs: parameters, memory, operations.

The model is built on the meta device: nothing is allocated, and every count is that of the real one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ..adapters import LORA_TARGETS
from ..model.configuration_baichuan import BaichuanConfig
from ..model.registration import AUTO_CLASSES


VARIABLES = (
    "vocab_size",
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_hidden_layers",
    "num_local_experts",
    "num_experts_per_tok",
)

# The part that a parameter of the backbone belongs to, by what stands in its name; any other is an embedding.
PARTS = {"pooler": "head", "norm": "norms", "attn": "attention", "mlp": "feed_forward"}

# nf4 with double quantisation (Dettmers et al. 2023): 4 bits a weight, 8 bits per 64 of them, 32 per 256 of those.
NF4_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)

ASSUMPTIONS = (
    "Training is AdamW in mixed precision. Full: weights, gradients and two moments in float32, and a copy of the"
    " weights in the lower precision. LoRA: frozen weights, and adapters in float32 on PEFT's default targets. QLoRA:"
    " the layers' matrices in nf4, the rest in float32. Activations are what the backward pass needs and the logits of"
    " the loss, without checkpointing and with attention that keeps no scores. Serving reads prompts of the full"
    " length in one pass. Operations: two per weight that a token meets, and attention for all tokens in its window,"
    " masked ones too; training takes three times as many. What torch itself needs comes on top."
)


def build_on_meta(config: BaichuanConfig) -> PreTrainedModel:
    """The model that `config.architectures` names, without memory for its weights; a language model if that names
    none of ours."""
    names = [*(config.architectures or ()), "BaichuanForCausalLM" if config.is_causal else "BaichuanForMaskedLM"]
    classes = {model_class.__name__: model_class for model_class in AUTO_CLASSES.values()}
    model_class = next(classes[name] for name in names if name in classes)
    with torch.device("meta"):
        return model_class(copy.deepcopy(config))


def measure(
    config: BaichuanConfig,
    *,
    batch_size: int = 1,
    length: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    lora_r: int = 16,
) -> dict[str, Any]:
    """Size and cost of a model, under `ASSUMPTIONS`.

    Args:
        config: of any of the package's models.
        batch_size: texts at once.
        length: tokens of each; by default the context length.
        dtype: of served weights, of the cache, and of activations.
        lora_r: rank of the adapters.

    Returns:
        What json can write; all memory in bytes:

        - `class`; `variables`, under the config's names; `settings`, the arguments;
        - `parameters`: `total`; `active`, what one token meets: of the experts those that it visits; the parts
          `embeddings`, `attention`, `feed_forward`, `norms` and `head`, whose sum is the total, with a tied head among
          the embeddings; `lora`, what adapters add;
        - `kv_cache`: `per_token` as long as no window is full, `per_text` at `length`, `maximum_per_text` at the
          context length; of a decoder with cross-attention, with an encoder's text of the same length;
        - `memory`: `serve`, `train_full`, `train_lora` and `train_qlora`, each with `weights`, `gradients`,
          `optimizer`, `activations`, `kv_cache` and `total`;
        - `flops_per_token`: `forward` and `training`, of a token that sees `length` tokens.

    Raises:
        ValueError: `length` is beyond the context of a model that cannot read more.
    """
    context = int(config.max_position_embeddings or 0)
    length = length or context
    if length > context and (config.position_embedding_type == "learned" or config.attention_type == "linformer"):
        raise ValueError(
            f"length ({length}) is beyond max_position_embeddings ({context}), and this model cannot go on."
        )
    tokens, item = batch_size * length, dtype.itemsize
    lower = item if item < 4 else 0
    model = build_on_meta(config)
    parameters = count_parameters(model)
    total, lora, matrices = parameters["total"], lora_parameters(model, lora_r), _quantised_weights(model)
    # Read in `dtype`; for the loss also in float32, as logarithms of probabilities and as gradient.
    logits = config.vocab_size * item if model.get_output_embeddings() is not None else 0
    loss = config.vocab_size * (12 + lower) if logits else 0
    kept, kept_frozen = (tokens * (kept_per_token(model, dtype, frozen=frozen) + loss) for frozen in (False, True))
    read = tokens * working_set_per_token(config) * item + (batch_size if config.is_causal else tokens) * logits
    forward = flops_per_token(model, length)
    return {
        "class": type(model).__name__,
        "variables": {name: getattr(config, name) for name in VARIABLES},
        "settings": {
            "batch_size": batch_size,
            "length": length,
            "dtype": str(dtype).removeprefix("torch."),
            "lora_r": lora_r,
        },
        "parameters": {**parameters, "lora": lora},
        "kv_cache": {
            "per_token": kv_cache_bytes(config, 1, dtype),
            "per_text": kv_cache_bytes(config, length, dtype),
            "maximum_per_text": kv_cache_bytes(config, context, dtype),
        },
        "memory": {
            "serve": _memory(total * item, activations=read, cache=batch_size * kv_cache_bytes(config, length, dtype)),
            "train_full": _memory(total * (4 + lower), trained=total, activations=kept),
            "train_lora": _memory(total * item + lora * 4, trained=lora, activations=kept_frozen),
            "train_qlora": _memory(
                round(matrices * NF4_BYTES) + (total - matrices + lora) * 4, trained=lora, activations=kept_frozen
            ),
        },
        "flops_per_token": {"forward": forward, "training": 3 * forward},
    }


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """`total`, `active` and the parts, as in `measure`; tied weights count once."""
    parts = dict.fromkeys(("embeddings", "attention", "feed_forward", "norms", "head"), 0)
    active = 0
    for name, parameter in model.named_parameters():
        part = next((PARTS[piece] for piece in PARTS if piece in name), "embeddings")
        parts[part if _in_backbone(model, name) else "head"] += parameter.numel()
        active += _active(model.config, name, parameter)
    return {"total": sum(parts.values()), "active": active, **parts}


def lora_parameters(model: PreTrainedModel, r: int) -> int:
    """What adapters of rank `r` on the default targets add."""
    targets = (module for name, module in model.named_modules() if name.rpartition(".")[2] in LORA_TARGETS)
    return sum(r * (module.in_features + module.out_features) for module in targets)


def kv_cache_bytes(config: BaichuanConfig, length: int, dtype: torch.dtype) -> int:
    """Bytes of the cached keys and values of one text of `length` tokens; an encoder caches none."""
    if not config.is_causal:
        return 0
    tokens = sum(min(length, _window(config, kind) or length) for kind in config.layer_types or ())
    if config.add_cross_attention:
        tokens += config.num_hidden_layers * length
    return 2 * tokens * _width(config, keys=True) * dtype.itemsize


def kept_per_token(model: PreTrainedModel, dtype: torch.dtype, *, frozen: bool = False) -> int:
    """Bytes that the layers keep of each token for the backward pass, when they compute in `dtype`.

    A norm keeps its input in float32, RMSNorm the scaled one too; a matrix that is trained its input, of which
    autocast makes a copy for each; attention queries, keys, values and its output; the feed-forward layer gate, inner
    layer and their product, as far as its activation needs them.

    Args:
        model: on any device; with weights in float32 under autocast.
        dtype: of the products.
        frozen: whether the weights are frozen in `dtype` instead, with adapters on the attention's inputs.
    """
    config = model.config
    hidden, gated, layers = config.hidden_size, config.gated_mlp, config.num_hidden_layers
    width, kv_width = _width(config), _width(config, keys=True)
    cast = dtype.itemsize < 4 and not frozen
    attentions = 2 if config.add_cross_attention else 1
    norms = (attentions + 1) * (2 if config.norm_position == "sandwich" else 1)
    float32 = layers * norms * hidden * (2 if config.norm_type == "rms_norm" and not frozen else 1)

    inputs = (1 if config.fused_qkv else 3) + 3 * (attentions - 1)
    if cast:
        inputs += 2 if gated else 1
    elif not frozen:
        inputs = attentions + 1
    lower = layers * (inputs * hidden + 2 * attentions * (width + kv_width))
    # Queries and keys are copies then, and the values keep all of W_pack's output alive.
    if config.fused_qkv and config.position_embedding_type in ("rope", "alibi"):
        lower += layers * 2 * width

    inner = _kept_by_activation(config.hidden_act, output=gated or not frozen)
    if gated:
        inner += 1 if frozen else 2
    visits = sum(config.num_experts_per_tok for index in range(layers) if config.is_sparse_layer(index))
    dense = sum(not config.is_sparse_layer(index) for index in range(layers))
    # An expert also has a copy of its tokens, and an output for each.
    float32 += visits * 2 * hidden
    lower += (visits + dense) * inner * config.intermediate_size + visits * 2 * hidden

    if config.num_global_tokens:  # the neighbours of each block, and the global tokens' keys and values
        lower += layers * (6 * width + 2 * kv_width + (2 * hidden if cast else 0))
    if config.attention_type == "linformer":
        scores = layers * config.num_attention_heads * config.projected_length
        float32, lower = float32 + scores, lower + scores
    if config.attention_type == "performer":  # exponents and features, of queries and of keys
        features = layers * config.num_attention_heads * _num_features(model)
        float32, lower = float32 + 4 * features, lower + (3 * features if cast else 0)
    return 4 * float32 + dtype.itemsize * lower


def _kept_by_activation(name: str, *, output: bool) -> int:
    """How many tensors of the inner layer's size an activation keeps, its `output` included if that is kept anyway."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() > 1:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = ACT2FN[name](torch.ones(8, requires_grad=True))
    return len(kept.keys() | {result.data_ptr()} if output else kept)


def working_set_per_token(config: BaichuanConfig) -> int:
    """Numbers per token while a feed-forward layer runs without gradients: residual, input, and the inner layer."""
    inner = config.intermediate_size * (config.num_experts_per_tok if config.num_local_experts else 1)
    return 2 * config.hidden_size + (3 if config.gated_mlp else 2) * inner


def flops_per_token(model: PreTrainedModel, length: int) -> int:
    """Operations of a forward pass per token that sees `length` tokens; a multiplication and an addition are two."""
    config = model.config
    matrices = 0
    for name, module in model.named_modules():
        # These are looked up, mix along the length (counted below), or meet one token of a text.
        if isinstance(module, nn.Embedding) or name.endswith(("_mixing", "q_global_proj", "pooler")):
            continue
        weights = (item for item in module.named_parameters(name, recurse=False) if item[1].ndim > 1)
        matrices += sum(_active(config, *item) for item in weights)
    return 2 * matrices + sum(_attention_flops(model, kind, length) for kind in config.layer_types)


def _attention_flops(model: PreTrainedModel, kind: str, length: int) -> int:
    """Of a layer, per token: what is no product with a weight."""
    config = model.config
    width = _width(config)
    if config.attention_type == "performer":
        return 8 * width * _num_features(model)
    if config.attention_type == "linformer":
        return 4 * config.projected_length * (width + _width(config, keys=True))
    seen = length
    if window := _window(config, kind):
        seen = min(length, window if config.is_causal else 2 * window + 1 + config.num_global_tokens)
    return 4 * width * (seen + (length if config.add_cross_attention else 0))


def _memory(weights: int, *, trained: int = 0, activations: int, cache: int = 0) -> dict[str, int]:
    row = {
        "weights": weights,
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "activations": activations,
        "kv_cache": cache,
    }
    return {**row, "total": sum(row.values())}


def _in_backbone(model: PreTrainedModel, name: str) -> bool:
    return model.base_model is model or name.startswith(model.base_model_prefix + ".")


def _quantised_weights(model: PreTrainedModel) -> int:
    """Weights that bitsandbytes quantises: linear layers, but for those of the head."""
    linear = (
        module for name, module in model.named_modules() if _in_backbone(model, name) and type(module) is nn.Linear
    )
    return sum(module.weight.numel() for module in linear)


def _active(config: BaichuanConfig, name: str, parameter: nn.Parameter) -> int:
    if ".experts." in name:
        return parameter.numel() * config.num_experts_per_tok // config.num_local_experts
    return parameter.numel()


def _window(config: BaichuanConfig, kind: str) -> int | None:
    return config.sliding_window if kind == "sliding_attention" else None


def _width(config: BaichuanConfig, *, keys: bool = False) -> int:
    heads = config.num_key_value_heads if keys else config.num_attention_heads
    return int(heads or 0) * int(config.head_dim or 0)


def _num_features(model: PreTrainedModel) -> int:
    return model.base_model.layers[0].self_attn.num_features
