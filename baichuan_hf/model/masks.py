"""Attention masks: which of transformers' functions makes them.

Shape legend: B batch, T queries, S keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, StaticCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.utils import is_torchdynamo_compiling

from .configuration_baichuan import BaichuanConfig
from .kernels import is_exporting


CAUSAL_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
BIDIRECTIONAL_MASKS = {
    "full_attention": create_bidirectional_mask,
    "sliding_attention": create_bidirectional_sliding_window_mask,
}


def attention_mask_of(
    kind: str,
    config: BaichuanConfig,
    *,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    position_ids: Tensor,
    **options: Any,
) -> Any:
    """The mask of a layer of `kind` in the form that the config's backend takes; None where none is needed.

    Args:
        kind: of `config.layer_types`.
        config: for the backend, the window and whether the model is causal.
        inputs_embeds: (B, T, hidden_size).
        attention_mask: (B, S) 0 for padding, or a ready mask (B, 1, T, S).
        past_key_values: cache, for the length of the keys.
        position_ids: (B or 1, T); without `attention_mask` and cache, positions that restart mark packed rows.
        options: `allow_is_causal_skip=False` and the like.
    """
    common: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    if config.is_causal:
        return CAUSAL_MASKS[kind](**common, position_ids=position_ids, **options)
    if attention_mask is None and (segments := find_packed_sequence_indices(position_ids)) is not None:
        segments = segments.expand(inputs_embeds.shape[0], -1)
        options["and_mask_function"] = packed_sequence_mask_function(segments)
    return BIDIRECTIONAL_MASKS[kind](**common, **options)


def mask_of_a_step(mask: Any, hidden_states: Tensor, config: BaichuanConfig, cache: Cache | None) -> Any:
    """For a single token and SDPA the mask in the form that is added, into which every layer would turn it anew.

    Args:
        mask: (B, 1 or H, T, S), or in another form.
        hidden_states: (B, T, hidden_size).
        config: for the backend.
        cache: of the keys.
    """
    if is_exporting() or config._attn_implementation != "sdpa" or hidden_states.shape[1] != 1:
        return mask
    if not isinstance(mask, Tensor):
        return mask
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=hidden_states.dtype).masked_fill(~mask, -torch.inf)
    if not mask.is_cuda or torch.compiler.is_compiling() or isinstance(cache, StaticCache):
        return mask
    # SDPA's kernels want rows that start at multiples of 16 bytes. What is compiled wants strides like sizes.
    return F.pad(mask, (0, -mask.shape[-1] % 8))[..., : mask.shape[-1]]


def padding_mask(attention_mask: Any, position_ids: Tensor) -> Tensor | None:
    """Which tokens are no padding, (B, T), for the kinds of attention that take no mask of queries by keys.

    Raises:
        ValueError: the rows are packed, or the mask is one of queries by keys.
    """
    ready = isinstance(attention_mask, dict) or (isinstance(attention_mask, Tensor) and attention_mask.ndim != 2)
    if ready or _is_packed(attention_mask, position_ids):
        raise ValueError(
            "This model's attention (Linformer, Performer, or a window with global tokens) takes an attention_mask"
            " (batch, tokens) of 0 and 1 only: pad the texts, one to a row."
        )
    return None if attention_mask is None else attention_mask != 0


def _is_packed(attention_mask: Tensor | None, position_ids: Tensor) -> bool:
    if is_torchdynamo_compiling():
        return False
    return bool((position_ids.diff(dim=-1) < 0).any()) if attention_mask is None else holds_segments(attention_mask)


def holds_segments(attention_mask: Any) -> bool:
    """Whether a mask (B, T) numbers the segments of packed rows. While tracing, where values are unknown, every
    integer mask counts as one: the result is the same, only without the shortcut for rows without padding."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2 or attention_mask.is_floating_point():
        return False
    if attention_mask.dtype == torch.bool:
        return False
    return is_torchdynamo_compiling() or bool((attention_mask > 1).any())


def restarting_positions(segments: Tensor) -> Tensor:
    """Positions (B, T) that restart with every segment of `segments` (B, T); transformers packs by such positions.

    Padding counts as a segment, which no token sees.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    # By number: the exporter to ONNX has a cummax whose result has no names.
    return columns - (columns * starts).cummax(dim=1)[0]


def token_positions(attention_mask: Tensor, num_queries: int) -> Tensor:
    """Positions (B, T) of the last `num_queries` columns of a mask (B, S), counting tokens and not padding."""
    return (attention_mask != 0).long().cumsum(dim=-1).sub(1).clamp(min=0)[:, -num_queries:]
