"""The transformer block: order of norms, residuals and sublayers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import BaichuanCrossAttention
from .attention_types import build_attention
from .configuration_baichuan import BaichuanConfig
from .feed_forward import build_feed_forward
from .normalization import build_normalization, residual_scale
from .residuals import build_residual


class BaichuanDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, with an encoder cross-attention, and a feed-forward layer; each in a residual with its norms.

    `post_attention_layernorm` is the originals' name for the norm in front of the feed-forward layer. The norms behind
    a sublayer are called `*_output_layernorm`.
    """

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.residual = build_residual(config)
        self.residual_scale = residual_scale(config)
        self.layer_drop = config.layer_drop
        self.dropout = nn.Dropout(config.hidden_dropout)

        self.self_attn = build_attention(config, layer_idx)
        self.mlp = build_feed_forward(config, layer_idx)
        before = self.residual.norm_before
        after = self.residual.norm_after
        self.input_layernorm = build_normalization(config) if before else nn.Identity()
        self.post_attention_layernorm = build_normalization(config) if before else nn.Identity()
        self.attention_output_layernorm = build_normalization(config) if after else nn.Identity()
        self.mlp_output_layernorm = build_normalization(config) if after else nn.Identity()
        if config.add_cross_attention:
            self.cross_attn = BaichuanCrossAttention(config, layer_idx)
            self.cross_attention_layernorm = build_normalization(config) if before else nn.Identity()
            self.cross_attention_output_layernorm = build_normalization(config) if after else nn.Identity()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: (B, T, hidden_size) -> same shape. The rest as in `BaichuanAttention`."""
        layer_input = hidden_states if self.layer_drop else None
        has_encoder_cache = isinstance(past_key_values, EncoderDecoderCache)
        # No names for what is added: a long text's would be kept until the end.
        hidden_states = self._add(
            hidden_states,
            self.self_attn(
                self.input_layernorm(hidden_states),
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values.self_attention_cache if has_encoder_cache else past_key_values,
                **kwargs,
            )[0],
            self.attention_output_layernorm,
        )
        if encoder_hidden_states is not None:
            attended, _ = self.cross_attn(
                self.cross_attention_layernorm(hidden_states),
                encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values if has_encoder_cache else None,
            )
            hidden_states = self._add(hidden_states, attended, self.cross_attention_output_layernorm)
        hidden_states = self._add(
            hidden_states, self.mlp(self.post_attention_layernorm(hidden_states)), self.mlp_output_layernorm
        )
        if self.training and layer_input is not None:
            # Not a branch: every process computes the same graph, and every parameter gets a gradient.
            kept = torch.rand((), device=hidden_states.device) >= self.layer_drop
            hidden_states = torch.where(kept, hidden_states, layer_input)
        return hidden_states

    def _add(self, residual: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
        if self.residual_scale != 1.0:
            residual = residual * self.residual_scale
        if self.training:
            output = self.dropout(output)
        return self.residual.add(residual, output, norm)
