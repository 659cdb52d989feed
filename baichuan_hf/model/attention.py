"""Softmax attention: projections and head sharing around transformers' attention interface.

Shape legend: B batch, H query heads, T queries, S keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from .configuration_baichuan import BaichuanConfig
from .cudnn_attention import AlibiAttention, sdpa_kernels, suits_cudnn
from .position_biases import HeadDims
from .positions import rotate


class HeadedAttention(nn.Module):
    """What attention to oneself and to an encoder share: the sizes of heads, and transformers' attention interface."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.width = config.num_attention_heads * self.head_dim
        self.kv_width = config.num_key_value_heads * self.head_dim

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D)."""
        return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def run_backend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """transformers' attention function of the config's backend: (B, H, T, D), ... -> (B, T, H, D), weights."""
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        kwargs.setdefault("scaling", self.scaling)
        return attend(self, query, key, value, attention_mask, dropout=dropout, **kwargs)


class BaichuanAttention(HeadedAttention):
    """Multi-head attention with one fused q, k, v matrix (`W_pack`), or grouped-query attention with three.

    Heads are counted from the projections' width, not from the config: under tensor parallelism a process has a part.
    Other kinds of attention between the same projections override `attend`.
    """

    # Whether `attend` takes which keys are tokens, (B, S) or None, in place of a mask of queries by keys.
    takes_padding_mask = False
    # Whether `attend` goes by the tokens' positions, which then count tokens without the padding.
    absolute = False

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = config.is_causal
        self.fused_qkv = config.fused_qkv
        if self.fused_qkv:
            self.W_pack = nn.Linear(config.hidden_size, 3 * self.width, bias=config.attention_bias)
        else:
            self.q_proj = nn.Linear(config.hidden_size, self.width, bias=config.attention_bias)
            self.k_proj = nn.Linear(config.hidden_size, self.kv_width, bias=config.attention_bias)
            self.v_proj = nn.Linear(config.hidden_size, self.kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: (B, T, hidden_size) -> same shape, and the attention weights where the backend has them."""
        query, key, value = self._project(hidden_states, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        with sdpa_kernels(query, past_key_values, training=self.training):
            output, weights = self.attend(
                query,
                key,
                value,
                attention_mask,
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                **kwargs,
            )  # (B, T, H, D)
        del query, key, value  # a long text's leave room for the projection
        return self._output(output.reshape(*hidden_states.shape[:-1], -1), hidden_states), weights

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        head_dims: HeadDims | None = None,
        is_plain_alibi: bool = False,
        hidden_states: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, H, T, D), twice (B, key/value heads, S, D) -> (B, T, H, D), by the backend that the config names.

        Args:
            query: as `key` and `value`, after rotation.
            key: with those of the cache.
            value: the like.
            attention_mask: of queries by keys, as the backend takes it, or as `takes_padding_mask` says.
            head_dims: a bias of the scores in the form of further dimensions.
            is_plain_alibi: whether that is ALiBi with its own slopes, which a kernel may have built in.
            hidden_states: what the three were projected from, for kinds of attention with projections of their own.
            position_embeddings: the rotation, for the same.
            kwargs: further arguments of the backend.
        """
        if isinstance(attention_mask, Tensor):
            attention_mask = self._local_heads(attention_mask, query.shape[1])
        if (bias := kwargs.get("position_bias")) is not None:
            kwargs["position_bias"] = (
                self._local_heads(bias, query.shape[1])
                if isinstance(bias, Tensor)
                else replace(bias, slopes=self._local_heads(bias.slopes, query.shape[1]))
            )
        if head_dims is not None:
            # cuDNN's slopes are those of as many heads as it is given: not of a process's part of them.
            whole = query.shape[1] == self.config.num_attention_heads and attention_mask is None
            drops = self.training and self.config.attention_dropout > 0
            if is_plain_alibi and whole and not drops and suits_cudnn(query, key, value):
                return AlibiAttention.apply(query, key, value, self.scaling).transpose(1, 2), None
            head_dims = head_dims._replace(query=self._local_heads(head_dims.query, query.shape[1]))
            query, key, value = head_dims.extend(query, key, value)
            output, weights = self.run_backend(query, key, value, attention_mask, scaling=head_dims.scaling, **kwargs)
            return output[..., : self.head_dim], weights
        return self.run_backend(query, key, value, attention_mask, **kwargs)

    def _project(self, hidden_states: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """(B, T, hidden_size) -> queries, keys and values, (B, heads, T, D) each."""
        if self.fused_qkv:
            heads = self.split_heads(self.W_pack(hidden_states))  # (B, 3H, T, D)
            if rotation is None:
                return heads.chunk(3, dim=1)
            # Queries and keys are rotated as one: of a single token, launching takes longer than computing.
            num_heads = heads.shape[1] // 3
            turned, value = heads.split_with_sizes([2 * num_heads, num_heads], dim=1)
            return *rotate(turned, *rotation).chunk(2, dim=1), value
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (self.split_heads(project(hidden_states)) for project in projections)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        return query, key, value

    def _output(self, mixed: Tensor, hidden_states: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, T, hidden_size), as the layer's input."""
        return self.o_proj(mixed)

    def _local_heads(self, bias: Tensor, num_heads: int) -> Tensor:
        """The part of a mask or the like, (B, H or 1, ...), that belongs to this process's heads."""
        if bias.shape[1] in (1, num_heads):
            return bias
        mesh = self.o_proj.weight.device_mesh  # type: ignore[attr-defined]  # sharded weights are DTensors
        rank = mesh.get_local_rank("tp") if mesh.ndim > 1 else mesh.get_local_rank()
        return bias.narrow(1, rank * num_heads, num_heads)


class BaichuanCrossAttention(HeadedAttention):
    """Attention of a decoder to the last hidden states of an encoder, whose keys and values are computed once."""

    is_causal = False

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        encoder_size = config.cross_attention_hidden_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, self.width, bias=config.attention_bias)
        self.k_proj = nn.Linear(encoder_size, self.kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(encoder_size, self.kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.width, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, hidden_size), (B, S, encoder's hidden_size) -> (B, T, hidden_size), and the weights if there are."""
        query = self.split_heads(self.q_proj(hidden_states))
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            key = self.split_heads(self.k_proj(encoder_hidden_states))
            value = self.split_heads(self.v_proj(encoder_hidden_states))
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        with sdpa_kernels(query, past_key_values, training=self.training):
            output, weights = self.run_backend(query, key, value, encoder_attention_mask, **kwargs)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights
