"""Position embeddings. A family member may act on queries and keys (`rotation`) or on the attention scores (`bias`).

Shape legend: B batch, H heads, T queries, S keys, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, initialization
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .configuration_baichuan import BaichuanConfig


class Float32Buffers(nn.Module):
    """A module whose buffers stay in float32 when the model is cast (`model.half()`): a frequency or slope that is
    rounded is wrong in proportion to the distance."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self


class RotaryEmbedding(Float32Buffers, LlamaRotaryEmbedding):
    """Rotary position embedding (Su et al. 2021) with every scaling of transformers' `rope_parameters`."""

    def mask_options(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the function that makes the attention mask must be told: nothing."""
        return {}

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (B, T, D), for `position_ids` (B, T)."""
        return self(hidden_states, position_ids)

    def bias(self, mask: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """RoPE leaves the attention scores alone."""
        return mask, {}

    def reset_buffers(self) -> None:
        """The frequencies are initialised by transformers itself, which knows this module by its attributes."""


class HeadDims(NamedTuple):
    """Dimensions to append to every query and key, so that their product adds a bias to the scores."""

    query: Tensor  # (1, H, 1, extra)
    key: Tensor  # (1, 1, S, extra)


@dataclass(frozen=True)
class ComputedBias:
    """Stands in for FlexAttention's `position_bias` (B, H, T, S), computing each element when it is asked for."""

    slopes: Tensor  # (1, H)
    q_positions: Tensor  # (T,)
    k_positions: Tensor  # (S,)

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        _, head, query, key = index
        return self.slopes[0, head] * (self.k_positions[key] - self.q_positions[query])


class AlibiEmbedding(Float32Buffers):
    """Attention with linear biases (Press et al. 2022): slope * (key position - query position) on every score.

    Only distances between columns count, so left padding and packing need no care. The bias takes one of three forms:
    folded into the attention mask, which holds heads x queries x keys numbers; for long inputs to SDPA on an
    accelerator, where that would be large, extra dimensions of queries and keys, whose product is the bias up to a
    constant per query, which softmax cancels (FlashBias, Wu et al. 2025); for FlexAttention, a function of indices.

    `alibi_scaling` flattens the slopes for sequences beyond the trained length: `linear` divides all by `factor`;
    `ntk` leaves the steepest slope (near tokens) and divides the flattest (far tokens) by `factor`, geometrically in
    between (github.com/keezen/ntk_alibi); `dynamic` is `ntk` with the factor length / `max_position_embeddings`.
    """

    slopes: Tensor
    BACKENDS = ("eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa")
    # With fewer queries at once the mask is small, and copying the cached keys to append to them costs more.
    MIN_QUERIES_FOR_HEAD_DIMS = 64

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slopes", alibi_slopes(config.num_attention_heads), persistent=False)

    def reset_buffers(self) -> None:
        initialization.copy_(self.slopes, alibi_slopes(self.config.num_attention_heads))

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> None:
        """ALiBi leaves queries and keys alone."""

    def mask_options(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the function that makes the attention mask must be told: that a bias is to be added to it."""
        return {} if self._uses_head_dims(hidden_states, kwargs) else {"allow_is_causal_skip": False}

    def bias(
        self,
        mask: Any,
        *,
        hidden_states: Tensor,
        past_key_values: Cache | None,
        layer_idx: int,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """The attention mask with the bias added, or the mask as it is and the bias as head dimensions.

        Args:
            mask: what transformers made for the backend: (B, 1, T, S), boolean or additive, a `BlockMask` or None.
            hidden_states: (B, T, hidden_size), for length, dtype and device.
            past_key_values: cache, asked how far its keys reach.
            layer_idx: a layer whose cache has the length that `mask` was made for.
            kwargs: of continuous batching, the lengths of the sequences that one row holds.

        Returns:
            The mask, with the bias (B, H, T, S), and further keyword arguments of `BaichuanAttention`.

        Raises:
            ValueError: the attention backend would drop the bias.
        """
        check_alibi_backend(self.config._attn_implementation)
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
        k_positions = torch.arange(kv_length, device=device) + kv_start
        slopes = self._scaled_slopes(k_positions)

        if self._uses_head_dims(hidden_states, kwargs):
            scaling = self.config.head_dim**-0.5
            # The parts of a slope must be exact in what attention computes in, which autocast chooses.
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else hidden_states.dtype
            return mask, {"head_dims": alibi_head_dims(slopes / scaling, kv_length, dtype)}
        if self.config._attn_implementation == "flex_attention":
            return mask, {"position_bias": ComputedBias(slopes[None], q_positions, k_positions)}
        distance = (k_positions[None, :] - q_positions[:, None]).float()  # (T, S), zero or negative where allowed
        bias = (slopes[:, None, None] * distance).to(hidden_states.dtype)[None]
        lowest = torch.finfo(hidden_states.dtype).min
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, lowest), {}
        return (bias + mask).clamp(min=lowest), {}

    def _uses_head_dims(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> bool:
        long = hidden_states.shape[1] >= self.MIN_QUERIES_FOR_HEAD_DIMS
        on_accelerator = hidden_states.device.type != "cpu"
        # The paged cache of continuous batching adds its keys inside the attention function, after these dimensions.
        paged = kwargs.get("cache") is not None
        return self.config._attn_implementation == "sdpa" and long and on_accelerator and not paged

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


def alibi_head_dims(slopes: Tensor, kv_length: int, dtype: torch.dtype) -> HeadDims:
    """Head dimensions whose product is slope * key position, exact in low precision too.

    Positions, counted back from the last key, are split into two digits of base 256 and slopes into three parts, each
    of which `dtype` represents exactly; attention sums the products in float32. Padded to 8, as kernels want it.

    Args:
        slopes: (H,) float32, divided by the scale of the scores.
        kv_length: number of keys S, at most 65,536 for exact digits.
        dtype: of queries and keys.
    """
    positions = torch.arange(1 - kv_length, 1, device=slopes.device)
    low = positions.remainder(256)
    digits = torch.stack([(positions - low) / 256, low.float()], dim=-1).to(dtype)  # (S, 2)
    parts, rest = [], slopes
    for _ in range(3):
        part = rest.to(dtype)
        parts += [part * 256, part]
        rest = rest - part.float()
    query = torch.stack(parts, dim=-1)  # (H, 6)
    key = digits.repeat(1, 3)  # (S, 6)
    return HeadDims(F.pad(query, (0, 2))[None, :, None], F.pad(key, (0, 2))[None, None])


def check_alibi_backend(attn_implementation: str | None) -> None:
    """Refuse an attention backend that takes no bias, so that it is never dropped in silence."""
    if attn_implementation is not None and attn_implementation not in AlibiEmbedding.BACKENDS:
        raise ValueError(
            f'Specified `attn_implementation="{attn_implementation}"` is not supported: it would drop the ALiBi bias'
            f" of this model (position_embedding_type='alibi'). Use one of {', '.join(AlibiEmbedding.BACKENDS[:3])}."
        )


def _geometric_slopes(num_heads: int) -> list[float]:
    start = 2 ** (-(2 ** -(math.log2(num_heads) - 3)))
    return [start * start**i for i in range(num_heads)]


def _packed_query_columns(index: Tensor, cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor) -> Tensor:
    """The key column of each query of a packed row, where the last query of a sequence meets its last key."""
    sequence = torch.bucketize(index, cu_seq_lens_q[1:].contiguous(), right=True).clamp(max=len(cu_seq_lens_q) - 2)
    return cu_seq_lens_k[1:][sequence] - cu_seq_lens_q[1:][sequence] + index


POSITIONS: dict[str, type[RotaryEmbedding | AlibiEmbedding]] = {"rope": RotaryEmbedding, "alibi": AlibiEmbedding}


def build_positions(config: BaichuanConfig) -> RotaryEmbedding | AlibiEmbedding:
    """The position embedding that `config.position_embedding_type` names."""
    return POSITIONS[config.position_embedding_type](config)
