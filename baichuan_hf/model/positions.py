"""Position embeddings. A family member may act on queries and keys (`rotation`) or on the attention scores (`bias`).

Shape legend: B batch, H heads, T queries, S keys, D head dimension.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, initialization
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .configuration_baichuan import BaichuanConfig


class RotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary position embedding (Su et al. 2021) with every scaling of transformers' `rope_parameters`."""

    mask_options: ClassVar[dict[str, Any]] = {}

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (B, T, D), for `position_ids` (B, T)."""
        return self(hidden_states, position_ids)

    def bias(self, mask: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """RoPE leaves the attention scores alone."""
        return mask, {}

    def reset_buffers(self) -> None:
        """The frequencies are initialised by transformers itself, which knows this module by its attributes."""


class AlibiEmbedding(nn.Module):
    """Attention with linear biases (Press et al. 2022): slope * (key position - query position) on every score.

    Only distances between columns count, so left padding and packing need no care. `alibi_scaling` flattens the slopes
    for sequences beyond the trained length: `linear` divides all by `factor`, `ntk` leaves the steepest slope (near
    tokens) and divides the flattest (far tokens) by `factor`, geometrically in between (github.com/keezen/ntk_alibi),
    `dynamic` is `ntk` with the factor length / `max_position_embeddings`.
    """

    BACKENDS = ("eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa")
    mask_options: ClassVar[dict[str, Any]] = {"allow_is_causal_skip": False}  # the bias needs a mask to be added to

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slopes", alibi_slopes(config.num_attention_heads), persistent=False)

    def reset_buffers(self) -> None:
        initialization.copy_(self.slopes, alibi_slopes(self.config.num_attention_heads))

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> None:
        """ALiBi leaves queries and keys alone."""

    def bias(
        self,
        mask: Any,
        *,
        hidden_states: Tensor,
        past_key_values: Cache | None,
        layer_idx: int,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """The attention mask with the bias added, or the bias beside it for FlexAttention.

        Args:
            mask: what transformers made for the backend: (B, 1, T, S), boolean or additive, or a `BlockMask`.
            hidden_states: (B, T, hidden_size), for length, dtype and device.
            past_key_values: cache, asked how far its keys reach.
            layer_idx: a layer whose cache has the length that `mask` was made for.
            kwargs: of continuous batching, the lengths of the sequences that one row holds.

        Returns:
            The mask (B, H, T, S) and further keyword arguments of the attention function.

        Raises:
            ValueError: the attention backend would drop the bias.
        """
        backend = self.config._attn_implementation
        check_alibi_backend(backend)
        q_length, device = hidden_states.shape[1], hidden_states.device
        kv_length = mask.shape[-1]
        kv_start: int | Tensor = 0
        q_positions = torch.arange(q_length, device=device)
        if past_key_values is not None:
            kv_start = past_key_values.get_mask_sizes(q_length, layer_idx)[1]
            q_positions = q_positions + past_key_values.get_query_offset(layer_idx)
        elif (cu_k := kwargs.get("cu_seq_lens_k")) is not None:
            cu_k = cu_k[self.config.layer_types[layer_idx]] if isinstance(cu_k, dict) else cu_k
            q_positions = _packed_query_columns(q_positions, kwargs["cu_seq_lens_q"], cu_k)
        k_positions = torch.arange(kv_length, device=device) + kv_start

        distance = (k_positions[None, :] - q_positions[:, None]).float()  # (T, S), zero or negative where allowed
        bias = (self._scaled_slopes(k_positions)[:, None, None] * distance).to(hidden_states.dtype)[None]
        if backend == "flex_attention":
            return mask, {"position_bias": bias.expand(hidden_states.shape[0], -1, -1, -1)}
        lowest = torch.finfo(hidden_states.dtype).min
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, lowest), {}
        return (bias + mask).clamp(min=lowest), {}

    def _scaled_slopes(self, k_positions: Tensor) -> Tensor:
        scaling = self.config.alibi_scaling
        if scaling is None:
            return self.slopes
        factor = scaling.get("factor")
        if scaling["alibi_type"] == "linear":
            return self.slopes / factor
        if factor is None:
            length = k_positions[-1] + 1
            factor = (length / self.config.max_position_embeddings).clamp(min=1)
        if len(self.slopes) == 1:
            return self.slopes / factor
        steepest, flattest = self.slopes.max().log(), self.slopes.min().log()
        share = (steepest - self.slopes.log()) / (steepest - flattest)
        return self.slopes * factor ** (-share)


def alibi_slopes(num_heads: int) -> Tensor:
    """The slope of each head, (H,) float32: 2^(-8/n), 2^(-16/n), ... for n heads when n is a power of two; else those
    of the power of two below, and every other one of the power above for the rest (Press et al. 2022).
    """
    closest = 2 ** math.floor(math.log2(num_heads))
    slopes = _geometric_slopes(closest)
    slopes += _geometric_slopes(2 * closest)[0::2][: num_heads - closest]
    return torch.tensor(slopes, dtype=torch.float32)


def check_alibi_backend(attn_implementation: str | None) -> None:
    """Refuse an attention backend that takes no bias, so that it is never dropped in silence."""
    if attn_implementation is not None and attn_implementation not in AlibiEmbedding.BACKENDS:
        raise ValueError(
            f"attn_implementation={attn_implementation!r} would drop the ALiBi bias of this model"
            f" (position_embedding_type='alibi'). Use one of {', '.join(AlibiEmbedding.BACKENDS[:3])}."
        )


def _geometric_slopes(num_heads: int) -> list[float]:
    start = 2 ** (-(2 ** -(math.log2(num_heads) - 3)))
    return [start * start**i for i in range(num_heads)]


def _packed_query_columns(index: Tensor, cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor) -> Tensor:
    """The key column of each query of a packed row, where the last query of a sequence meets its last key."""
    sequence = torch.bucketize(index, cu_seq_lens_q[1:].contiguous(), right=True).clamp(max=len(cu_seq_lens_q) - 2)
    return cu_seq_lens_k[1:][sequence] - cu_seq_lens_q[1:][sequence] + index


POSITIONS: dict[str, type[nn.Module]] = {"rope": RotaryEmbedding, "alibi": AlibiEmbedding}


def build_positions(config: BaichuanConfig) -> nn.Module:
    """The position embedding that `config.position_embedding_type` names."""
    return POSITIONS[config.position_embedding_type](config)
