"""Longformer's attention: a sliding window, and a few global tokens (Beltagy et al. 2020).

Shape legend: B batch, H heads, T tokens, D head dimension, W window on either side, G global tokens, N blocks of W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import repeat_kv

from .attention import BaichuanAttention
from .configuration_baichuan import BaichuanConfig
from .positions import rotate


class WindowedAttention(BaichuanAttention):
    """Every token sees `sliding_window` tokens on either side and the global ones, which are the first
    `num_global_tokens` of each text; those see all tokens, through projections of their own.

    `eager` computes it with a T x T mask. The other backends go block by block: memory and time grow with T x W.
    """

    takes_padding_mask = True

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_global_proj = nn.Linear(config.hidden_size, self.width, bias=config.attention_bias)
        self.k_global_proj = nn.Linear(config.hidden_size, self.kv_width, bias=config.attention_bias)
        self.v_global_proj = nn.Linear(config.hidden_size, self.kv_width, bias=config.attention_bias)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        hidden_states: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        assert hidden_states is not None
        is_token = attention_mask
        if is_token is None:
            is_token = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        global_columns = self._global_columns(is_token)  # (B, G)
        plain = self.config._attn_implementation == "eager"
        windowed = self._windowed_plain if plain else self._windowed_by_blocks
        output, weights = windowed(query, key, value, is_token, global_columns)
        of_global, global_weights = self._global_rows(hidden_states, is_token, global_columns, position_embeddings)
        output = _replace_rows(output, global_columns, of_global)
        if weights is not None and global_weights is not None:
            weights = _replace_rows(weights.transpose(1, 2), global_columns, global_weights.transpose(1, 2))
            weights = weights.transpose(1, 2)
        return output, weights

    def _global_columns(self, is_token: Tensor) -> Tensor:
        count = min(self.config.num_global_tokens, is_token.shape[1])
        first = is_token.int().argmax(dim=-1).clamp(max=is_token.shape[1] - count)
        return first[:, None] + torch.arange(count, device=is_token.device)

    def _windowed_plain(
        self, query: Tensor, key: Tensor, value: Tensor, is_token: Tensor, global_columns: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        columns = torch.arange(is_token.shape[1], device=is_token.device)
        near = (columns[:, None] - columns).abs() <= self.config.sliding_window
        is_global = torch.zeros_like(is_token).scatter(1, global_columns, True)
        seen = (near | is_global[:, None]) & is_token[:, None]  # (B, T, T)
        mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
        return self.run_backend(query, key, value, mask[:, None])

    def _windowed_by_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, is_token: Tensor, global_columns: Tensor
    ) -> tuple[Tensor, None]:
        batch, _, length, _ = query.shape
        window = min(self.config.sliding_window, length)
        key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
        padding = -length % window
        num_blocks = (length + padding) // window
        rows = torch.arange(batch, device=query.device)[:, None]

        def neighbours(x: Tensor) -> Tensor:
            """(B, H, T, D) -> (B, N, H, 3W + G, D): for each block itself, the one on either side, the global ones."""
            blocks = F.pad(x, (0, 0, window, window + padding)).unfold(2, 3 * window, window).transpose(3, 4)
            shared = x.transpose(1, 2)[rows, global_columns].transpose(1, 2)[:, :, None]  # (B, H, 1, G, D)
            return torch.cat([blocks, shared.expand(-1, -1, num_blocks, -1, -1)], dim=3).transpose(1, 2)

        # A window's own columns: the token in row i of the middle block sees i to i + 2W of the three.
        offset = torch.arange(3 * window, device=query.device) - torch.arange(window, device=query.device)[:, None]
        near = (offset >= 0) & (offset <= 2 * window)  # (W, 3W)
        local = is_token & ~torch.zeros_like(is_token).scatter(1, global_columns, True)
        local = F.pad(local, (window, window + padding)).unfold(1, 3 * window, window)  # (B, N, 3W)
        shared = is_token[rows, global_columns][:, None, None].expand(-1, num_blocks, window, -1)
        seen = torch.cat([near & local[:, :, None], shared], dim=-1)  # (B, N, W, 3W + G)
        # Some backends make NaN of a row that sees nothing, as padding may.
        seen = seen | ~seen.any(-1, keepdim=True)

        blocks = F.pad(query, (0, 0, 0, padding)).unflatten(2, (num_blocks, window)).transpose(1, 2)
        output = F.scaled_dot_product_attention(
            blocks.flatten(0, 1),
            neighbours(key).flatten(0, 1),
            neighbours(value).flatten(0, 1),
            attn_mask=seen.flatten(0, 1)[:, None],
            dropout_p=self.config.attention_dropout if self.training else 0.0,
            scale=self.scaling,
        )  # (B * N, H, W, D)
        output = output.unflatten(0, (batch, num_blocks)).permute(0, 1, 3, 2, 4)  # (B, N, W, H, D)
        return output.flatten(1, 2)[:, :length], None

    def _global_rows(
        self,
        hidden_states: Tensor,
        is_token: Tensor,
        global_columns: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The output of the global tokens, (B, G, H, D), and their weights where the backend has them."""
        rows = torch.arange(len(hidden_states), device=hidden_states.device)[:, None]
        query = self.split_heads(self.q_global_proj(hidden_states[rows, global_columns]))
        key = self.split_heads(self.k_global_proj(hidden_states))
        value = self.split_heads(self.v_global_proj(hidden_states))
        if position_embeddings is not None:
            cos, sin = (x.expand(len(hidden_states), -1, -1) for x in position_embeddings)
            query = rotate(query, cos[rows, global_columns], sin[rows, global_columns])
            key = rotate(key, cos, sin)
        mask = torch.zeros(is_token.shape, dtype=query.dtype, device=query.device)
        mask = mask.masked_fill(~is_token, torch.finfo(query.dtype).min)
        mask = mask[:, None, None].expand(-1, -1, query.shape[2], -1)
        if self.config._attn_implementation == "eager":
            return self.run_backend(query, key, value, mask)
        key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
        dropout = self.config.attention_dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=self.scaling)
        return output.transpose(1, 2), None


def _replace_rows(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """x: (B, T, ...) with the rows at `columns` (B, G) replaced by `rows` (B, G, ...)."""
    index = columns[(...,) + (None,) * (x.ndim - 2)].expand_as(rows)
    return x.scatter(1, index, rows.to(x.dtype))
