"""Self-attention: projections and head sharing around transformers' attention interface.

Shape legend: B batch, H query heads, T queries, S keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from .configuration_baichuan import BaichuanConfig
from .positions import HeadDims


class BaichuanAttention(nn.Module):
    """Multi-head attention with one fused q, k, v matrix (`W_pack`), or grouped-query attention with three.

    Heads are counted from the projections' width, not from the config: under tensor parallelism a process has a part.
    """

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = config.is_causal

        width = config.num_attention_heads * self.head_dim
        kv_width = config.num_key_value_heads * self.head_dim
        if config.fused_qkv:
            self.W_pack = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        else:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=config.attention_bias)
            self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
            self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        head_dims: HeadDims | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: (B, T, hidden_size) -> same shape, and the attention weights where the backend has them."""
        input_shape = hidden_states.shape[:-1]
        query, key, value = (
            x.view(*input_shape, -1, self.head_dim).transpose(1, 2) for x in self._project(hidden_states)
        )  # (B, H, T, D)
        if position_embeddings is not None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        if isinstance(attention_mask, Tensor):
            attention_mask = self._local_heads(attention_mask, query.shape[1])
        if (bias := kwargs.get("position_bias")) is not None:
            kwargs["position_bias"] = replace(bias, slopes=self._local_heads(bias.slopes, query.shape[1]))
        if head_dims is not None:
            extra_query = self._local_heads(head_dims.query, query.shape[1])
            query = torch.cat([query, extra_query.expand(*query.shape[:3], -1)], dim=-1)
            key = torch.cat([key, head_dims.key.expand(*key.shape[:3], -1)], dim=-1)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # (B, T, H, D)
        return self.o_proj(output.reshape(*input_shape, -1)), weights

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        if self.config.fused_qkv:
            return self.W_pack(hidden_states).chunk(3, dim=-1)
        return self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)

    def _local_heads(self, bias: Tensor, num_heads: int) -> Tensor:
        """The part of a mask or the like, (B, H or 1, ...), that belongs to this process's heads."""
        if bias.shape[1] in (1, num_heads):
            return bias
        mesh = self.o_proj.weight.device_mesh  # type: ignore[attr-defined]  # sharded weights are DTensors
        rank = mesh.get_local_rank("tp") if mesh.ndim > 1 else mesh.get_local_rank()
        return bias.narrow(1, rank * num_heads, num_heads)
