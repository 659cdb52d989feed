"""Mixture of experts: a router sends each token to a few of many feed-forward layers (Mixtral, Jiang et al. 2024).

The experts run through transformers' experts interface: `model.set_experts_implementation("grouped_mm")`.
Shape legend: N tokens, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralTopKRouter,
    load_balancing_loss_func,
)

from .configuration_baichuan import BaichuanConfig


@use_experts_implementation(has_gate=False)
class Experts(nn.Module):
    """Two-layer experts, the ungated twin of `MixtralExperts`: all weights of a kind in one parameter."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.num_experts = config.num_local_experts
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, config.intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, config.hidden_size, config.intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, hidden_size), (N, K) expert numbers, (N, K) their weights -> (N, hidden_size); one expert at a time."""
        output = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, place = torch.where(top_k_index == expert)
            inner = self.act_fn(F.linear(hidden_states[token], self.up_proj[expert]))
            weighted = F.linear(inner, self.down_proj[expert]) * top_k_weights[token, place, None]
            output.index_add_(0, token, weighted.to(output.dtype))
        return output


EXPERTS: dict[bool, type[nn.Module]] = {False: Experts, True: MixtralExperts}


class MixtureOfExperts(nn.Module):
    """The sum of the K experts with the highest router probability, weighted by those, scaled to a sum of 1."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate = MixtralTopKRouter(config)
        self.experts = EXPERTS[config.gated_mlp](config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(tokens)
        return self.experts(tokens, chosen, weights).view(hidden_states.shape)


def load_balancing_loss(router_logits: tuple[Tensor, ...], attention_mask: Any, config: BaichuanConfig) -> Tensor:
    """The loss of Switch Transformer (Fedus et al. 2021), 1 per expert visited when all are equally busy.

    Args:
        router_logits: (N, E) of each sparse layer.
        attention_mask: (B, T) over the same tokens, whose zeros are not counted; anything else counts all.
        config: for the number of experts and how many a token visits.
    """
    counted = None
    if isinstance(attention_mask, Tensor) and attention_mask.numel() == router_logits[0].shape[0]:
        counted = attention_mask != 0
    return load_balancing_loss_func(router_logits, config.num_local_experts, config.num_experts_per_tok, counted)
