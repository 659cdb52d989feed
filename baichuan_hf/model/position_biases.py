"""Positions that act on the attention scores: ALiBi, and T5's bucketed relative bias.

Shape legend: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, initialization

from .configuration_baichuan import BaichuanConfig
from .kernels import is_exporting
from .position_protocol import Positions


class HeadDims(NamedTuple):
    """Dimensions to put before those of every query and key, so that their product adds a bias to the scores."""

    query: Tensor  # (1, H, T, extra)
    key: Tensor  # (1, 1, S, extra)
    scaling: float  # of the scores, for SDPA to apply

    def extend(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, T, D), twice (B, key/value heads, S, D) -> the three for SDPA, of whose result D dimensions count."""
        if self.scaling == 1:
            query = query * query.shape[-1] ** -0.5
        query = torch.cat([self.query.expand(*query.shape[:3], -1), query], dim=-1)
        key = torch.cat([self.key.expand(*key.shape[:3], -1), key], dim=-1)
        # A CPU's kernel without a buffer of queries by keys wants values as wide as keys.
        return query, key, F.pad(value, (0, self.key.shape[-1])) if value.is_cpu else value


@dataclass(frozen=True)
class ComputedBias:
    """Stands in for FlexAttention's `position_bias` (B, H, T, S), computing each element when it is asked for."""

    slopes: Tensor  # (1, H)
    q_positions: Tensor  # (T,)
    k_positions: Tensor  # (S,)

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        _, head, query, key = index
        return -self.slopes[0][head] * (self.k_positions[key] - self.q_positions[query]).abs()


class ScoreBias(Positions):
    """A bias per head and distance, key column minus query column. Only distances between columns count, so left
    padding and packing need no care."""

    backends = ("eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa")

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.config = config

    def scores(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """The bias (H, T, S) of queries in columns (T,) and keys in columns (S,); each kind of bias has its own."""
        raise NotImplementedError

    def mask_options(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """That a bias is to be added to the mask, so that there must be one."""
        return {"allow_is_causal_skip" if self.config.is_causal else "allow_is_bidirectional_skip": False}

    def bias(
        self, mask: Any, *, hidden_states: Tensor, past_key_values: Cache | None, layer_idx: int, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        self.check_backend(self.config._attn_implementation)
        columns = self._columns(mask, hidden_states, past_key_values, layer_idx, kwargs)
        if self.config._attn_implementation == "flex_attention":
            return mask, {"position_bias": self._flex_bias(*columns)}
        if mask is None:
            # `generate` leaves it out of the first pass over a static cache, where SDPA could do without.
            q_positions, k_positions = columns
            mask = (k_positions[None, :] <= q_positions[:, None])[None, None]
        return self._folded(mask, self.scores(*columns).to(hidden_states.dtype)[None]), {}

    def _folded(self, mask: Tensor, bias: Tensor) -> Tensor:
        lowest = torch.finfo(bias.dtype).min
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, lowest)
        return (bias + mask).clamp(min=lowest)

    def _flex_bias(self, q_positions: Tensor, k_positions: Tensor) -> Any:
        return self.scores(q_positions, k_positions)[None]

    def _columns(
        self, mask: Any, hidden_states: Tensor, past_key_values: Cache | None, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The columns of the queries, (T,), and of the keys, (S,)."""
        q_length, device = hidden_states.shape[1], hidden_states.device
        kv_start: int | Tensor = 0
        q_positions = torch.arange(q_length, device=device)
        if past_key_values is not None:
            kv_length, kv_start = past_key_values.get_mask_sizes(q_length, layer_idx)
            q_positions = q_positions + past_key_values.get_query_offset(layer_idx)
        else:
            kv_length = q_length if mask is None else mask.shape[-1]
            if (cu_k := kwargs.get("cu_seq_lens_k")) is not None:
                cu_k = cu_k[self.config.layer_types[layer_idx]] if isinstance(cu_k, dict) else cu_k
                q_positions = _packed_query_columns(q_positions, kwargs["cu_seq_lens_q"], cu_k)
        return q_positions, torch.arange(kv_length, device=device) + kv_start


class AlibiBias(ScoreBias):
    """Attention with linear biases (Press et al. 2022): -slope * distance on every score; in an encoder, where both
    sides are seen, alike on both.

    The bias takes one of three forms: folded into the attention mask, which holds heads x queries x keys numbers; for
    long causal inputs to SDPA, where that would be large, extra dimensions of queries and keys, whose product is the
    bias up to a constant per query, which softmax cancels (FlashBias, Wu et al. 2025), or where cuDNN can, its kernel
    with the bias built in; for FlexAttention, a function of indices.

    `alibi_scaling` flattens the slopes for sequences beyond the trained length: `linear` divides all by `factor`;
    `ntk` leaves the steepest slope (near tokens) and divides the flattest (far tokens) by `factor`, geometrically in
    between (github.com/keezen/ntk_alibi); `dynamic` is `ntk` with the factor length / `max_position_embeddings`.
    """

    title = "ALiBi"
    slopes: Tensor
    # With fewer queries at once the mask is small, and copying the cached keys to extend them costs more.
    MIN_QUERIES_FOR_HEAD_DIMS = 64
    MIN_QUERIES_ON_CPU = 1024

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.register_buffer("slopes", alibi_slopes(config.num_attention_heads), persistent=False)

    def reset_buffers(self) -> None:
        initialization.copy_(self.slopes, alibi_slopes(self.config.num_attention_heads))

    def scores(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        distance = (k_positions[None, :] - q_positions[:, None]).abs().float()
        return -self._scaled_slopes(k_positions)[:, None, None] * distance

    def mask_options(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {} if self._uses_head_dims(hidden_states, kwargs) else super().mask_options(hidden_states, kwargs)

    def bias(self, mask: Any, *, hidden_states: Tensor, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if not self._uses_head_dims(hidden_states, kwargs):
            return super().bias(mask, hidden_states=hidden_states, **kwargs)
        columns = self._columns(mask, hidden_states, kwargs["past_key_values"], kwargs["layer_idx"], kwargs)
        slopes = self._scaled_slopes(columns[1])
        # The parts of a slope must be exact in what attention computes in, which autocast chooses.
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        head_dims = alibi_head_dims(slopes, self.config.head_dim, *columns, dtype)
        return mask, {"head_dims": head_dims, "is_plain_alibi": self.config.alibi_scaling is None}

    def _flex_bias(self, q_positions: Tensor, k_positions: Tensor) -> ComputedBias:
        return ComputedBias(self._scaled_slopes(k_positions)[None], q_positions, k_positions)

    def _uses_head_dims(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> bool:
        on_cpu = hidden_states.device.type == "cpu"
        # A graph for texts of any length has one form; and with dropout a CPU has queries by keys anyway.
        if is_exporting() or (on_cpu and self.training and self.config.attention_dropout > 0):
            return False
        long = hidden_states.shape[1] >= (self.MIN_QUERIES_ON_CPU if on_cpu else self.MIN_QUERIES_FOR_HEAD_DIMS)
        # The paged cache of continuous batching adds its keys inside the attention function, after these dimensions.
        paged = kwargs.get("cache") is not None
        linear = self.config.is_causal and self.config._attn_implementation == "sdpa"
        return linear and long and not paged

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


class RelativeBias(ScoreBias):
    """A learned bias per head and bucket of distances, shared by all layers (T5, Raffel et al. 2020).

    Half of the buckets are for single distances, the rest for ranges that grow logarithmically up to
    `relative_attention_max_distance`; in an encoder either side has half of them.
    """

    title = "relative"

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)

    def scores(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        buckets = self._buckets(k_positions[None, :] - q_positions[:, None])
        return self.relative_attention_bias(buckets).permute(2, 0, 1)

    def _buckets(self, distance: Tensor) -> Tensor:
        num_buckets = self.config.relative_attention_num_buckets
        first: Tensor | int = 0
        if not self.config.is_causal:
            num_buckets //= 2
            first = (distance > 0) * num_buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        num_exact = num_buckets // 2
        # What is below num_exact is replaced after; without the clamp its logarithm could be infinite.
        ratio = (distance.clamp(min=1).float() / num_exact).log()
        ratio = ratio / math.log(self.config.relative_attention_max_distance / num_exact)
        ranged = num_exact + (ratio * (num_buckets - num_exact)).long()
        return first + torch.where(distance < num_exact, distance, ranged.clamp(max=num_buckets - 1))


def alibi_slopes(num_heads: int) -> Tensor:
    """The slope of each head, (H,) float32: 2^(-8/n), 2^(-16/n), ... for n heads when n is a power of two; else those
    of the power of two below, and every other one of the power above for the rest (Press et al. 2022).
    """
    closest = 2 ** math.floor(math.log2(num_heads))
    slopes = _geometric_slopes(closest)
    slopes += _geometric_slopes(2 * closest)[0::2][: num_heads - closest]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_head_dims(
    slopes: Tensor, head_dim: int, q_positions: Tensor, k_positions: Tensor, dtype: torch.dtype
) -> HeadDims:
    """Eight head dimensions whose product is -slope * distance up to a constant per query, exact in any precision.

    The keys' positions are split into two digits of base 256 and the slopes into three parts, whose products are exact
    in float32, in which attention sums them. The first two parts take the query's position off at once: what is large
    cancels before it could round away what differs between neighbouring keys, provided that these dimensions come
    first. As a constant per query, that may itself be rounded.

    Args:
        slopes: (H,) float32.
        head_dim: of queries and keys without these.
        q_positions: columns of the queries, (T,).
        k_positions: columns of the keys, (S,), at most 65,536 of them.
        dtype: of queries and keys.
    """
    # A BLAS may scale one of two factors, whose products would be exact no more: float32 has room to scale queries.
    scaling = head_dim**-0.5 if torch.finfo(dtype).bits == 16 else 1.0
    queries, keys = (columns - k_positions[-1] for columns in (q_positions, k_positions))
    low = keys.remainder(256)
    digits = [(keys - low) / 256, low, torch.ones_like(low)]
    exact = torch.float16 if dtype == torch.float16 else torch.bfloat16
    first, second, third = _parts(slopes[:, None] / scaling, exact)
    parts = [256 * first, first, -first * queries, 256 * second, second, -second * queries, 256 * third, third]
    query = torch.stack(torch.broadcast_tensors(*parts), dim=-1).clamp(max=torch.finfo(exact).max)  # (H, T, 8)
    key = torch.stack([*digits, *digits, *digits[:2]], dim=-1)  # (S, 8)
    return HeadDims(query.to(dtype)[None], key.to(dtype)[None, None], scaling)


def _parts(number: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Three float32 tensors that `dtype` represents exactly and whose sum is the float32 `number`."""
    parts: list[Tensor] = []
    for _ in range(3):
        parts.append((number - sum(parts)).to(dtype).float())
    return parts


def _geometric_slopes(num_heads: int) -> list[float]:
    start = 2 ** (-(2 ** -(math.log2(num_heads) - 3)))
    return [start * start**i for i in range(num_heads)]


def _packed_query_columns(index: Tensor, cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor) -> Tensor:
    """The key column of each query of a packed row, where the last query of a sequence meets its last key."""
    sequence = torch.bucketize(index, cu_seq_lens_q[1:].contiguous(), right=True).clamp(max=len(cu_seq_lens_q) - 2)
    return cu_seq_lens_k[1:][sequence] - cu_seq_lens_q[1:][sequence] + index
