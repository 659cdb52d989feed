"""A transformer as the papers write it: loops over named weights in float64, none of the package's modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


# (query, key, value, layer's name, weights) -> output; all but the last two (B, heads, T, head_dim).
Attend = Callable[[Tensor, Tensor, Tensor, str, dict[str, Tensor]], Tensor]


def softmax_attention(bias: Tensor | float = 0.0) -> Attend:
    """Softmax attention with `bias` added to the scores, -inf where a key is not seen."""

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: str, weights: dict[str, Tensor]) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return (scores + bias).softmax(-1) @ value

    return attend


def causal_mask(length: int) -> Tensor:
    return torch.full((length, length), -torch.inf).triu(1)


def hidden_states(
    model: Any, ids: Tensor, attend: Attend, *, alpha: float = 1.0, encoder_states: Tensor | None = None
) -> Tensor:
    """What a `BaichuanModel` should return, with its weights: LayerNorm, no positions, multi-head attention and a
    two-layer ReLU network, with biases.

    Args:
        model: a `BaichuanModel`, read for its weights and its config.
        ids: (B, T).
        attend: the self-attention.
        alpha: factor of the residual in the order `post`.
        encoder_states: (B, S, hidden_size), for a decoder that attends to them.
    """
    config = model.config
    weights = {name: weight.double() for name, weight in model.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

    def self_attention(name: str, x: Tensor) -> Tensor:
        query, key, value = (heads(part) for part in linear(f"{name}.W_pack", x).chunk(3, dim=-1))
        return linear(f"{name}.o_proj", attend(query, key, value, name, weights).transpose(1, 2).flatten(2))

    def cross_attention(name: str, x: Tensor) -> Tensor:
        query = heads(linear(f"{name}.q_proj", x))
        key, value = (heads(linear(f"{name}.{part}_proj", encoder_states.double())) for part in "kv")
        output = softmax_attention()(query, key, value, name, weights)
        return linear(f"{name}.o_proj", output.transpose(1, 2).flatten(2))

    def feed_forward(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.down_proj", linear(f"{name}.up_proj", x).relu())

    sublayers = [(self_attention, "self_attn", "input_layernorm", "attention_output_layernorm")]
    if encoder_states is not None:
        names = ("cross_attn", "cross_attention_layernorm", "cross_attention_output_layernorm")
        sublayers.append((cross_attention, *names))
    sublayers.append((feed_forward, "mlp", "post_attention_layernorm", "mlp_output_layernorm"))

    x = weights["embed_tokens.weight"][ids]
    for index in range(config.num_hidden_layers):
        for function, *names in sublayers:
            name, before, after = (f"layers.{index}.{name}" for name in names)
            if config.norm_position == "pre":
                x = x + function(name, norm(before, x))
            elif config.norm_position == "post":
                x = norm(after, alpha * x + function(name, x))
            else:
                x = x + norm(after, function(name, norm(before, x)))
    return norm("norm", x)


@torch.no_grad()
def perturb(model: Any) -> Any:
    """Moves every weight away from its initial value, so that norms and biases show, and returns the model."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()
