"""Layers and heads taken out of a model, in place; its config says what is left, so that it saves and loads as any."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.modeling_baichuan import BaichuanModel


# These give every head a bias of its own by its number, or weights that all heads share.
UNPRUNABLE = {
    "position_embedding_type": ("alibi", "relative"),
    "attention_type": ("linformer", "performer"),
    "add_cross_attention": (True,),
}


def base_of(model: PreTrainedModel) -> BaichuanModel:
    """The layers and embeddings of a model. Raises ValueError if it is none of ours."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, BaichuanModel):
        raise ValueError(f"{type(model).__name__} is no Baichuan model: convert it first, or merge its adapter")
    return base


def attentions_of(model: PreTrainedModel) -> list[Any]:
    """The self-attention of each layer, a `BaichuanAttention`."""
    return [layer.self_attn for layer in base_of(model).layers]


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` of the layers 0 to `total` - 1 at equal distances, the first and the last among them if two or more.

    Raises ValueError if there are fewer, or none is asked for.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{count} of {total} layers cannot be kept: give a number from 1 to {total}")
    return [round(index * (total - 1) / max(count - 1, 1)) for index in range(count)]


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Take out all layers but these, counted from 0.

    Raises ValueError for a layer that is not there, and where the others would not be what they were: DeepNorm scales
    residuals by the number of layers, and `moe_layer_interval` counts them to place its experts.
    """
    base, config = base_of(model), model.config
    layers = sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < config.num_hidden_layers:
        raise ValueError(f"layers to keep are {layers}; the model has 0 to {config.num_hidden_layers - 1}")
    if config.norm_type == "deep_norm":
        raise ValueError("norm_type='deep_norm' scales residuals by the number of layers: none can be taken out")
    for new, old in enumerate(layers):
        if config.is_sparse_layer(new) != config.is_sparse_layer(old):
            raise ValueError(
                f"moe_layer_interval={config.moe_layer_interval}: layer {old} would become layer {new}, which"
                f" {'has' if config.is_sparse_layer(new) else 'lacks'} experts there"
            )
    base.layers = nn.ModuleList(base.layers[old] for old in layers)
    for index, layer in enumerate(base.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    config.num_hidden_layers = len(layers)
    config.layer_types = [config.layer_types[old] for old in layers]


@torch.no_grad()
def keep_heads(model: PreTrainedModel, heads: Sequence[Sequence[int]]) -> None:
    """Take out all heads of each layer but these, counted from 0; with grouped queries, groups in place of heads.

    `head_dim` stays. Every layer keeps the same number: the config has one for all. Raises ValueError if they do not,
    for a head that is not there, and for kinds of attention whose heads are not alike (`UNPRUNABLE`).
    """
    config, attentions = model.config, attentions_of(model)
    for field, values in UNPRUNABLE.items():
        if getattr(config, field) in values:
            raise ValueError(f"{field}={getattr(config, field)!r} has heads that cannot be taken out")
    if config.num_global_tokens:
        raise ValueError("num_global_tokens has projections whose heads cannot be taken out: set it to 0")
    kept = [sorted(set(part)) for part in heads]
    groups = config.num_key_value_heads
    if len(kept) != config.num_hidden_layers or len({len(part) for part in kept}) != 1 or not kept[0]:
        raise ValueError(f"heads to keep must be as many in each of {config.num_hidden_layers} layers: {kept}")
    if wrong := [head for part in kept for head in part if not 0 <= head < groups]:
        raise ValueError(f"head {wrong[0]} is not there; each layer has 0 to {groups - 1}")

    for attention, part in zip(attentions, kept, strict=True):
        keys = _rows_of(part, config.head_dim)
        queries = _rows_of(part, config.head_dim * config.num_attention_heads // groups)
        if config.fused_qkv:
            _select(attention.W_pack, torch.cat([keys + third * attention.width for third in range(3)]), dim=0)
        else:
            _select(attention.q_proj, queries, dim=0)
            _select(attention.k_proj, keys, dim=0)
            _select(attention.v_proj, keys, dim=0)
        _select(attention.o_proj, queries, dim=1)
        attention.width, attention.kv_width = len(queries), len(keys)
    config.num_attention_heads = config.num_attention_heads // groups * len(kept[0])
    config.num_key_value_heads = len(kept[0])


def _rows_of(heads: Sequence[int], width: int) -> Tensor:
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


def _select(linear: nn.Linear, indices: Tensor, *, dim: int) -> None:
    """Keep these rows (dim 0) or columns (dim 1) of a linear layer."""
    indices = indices.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.index_select(dim, indices), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[indices], linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape
