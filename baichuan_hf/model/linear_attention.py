"""Attention of encoders whose cost grows linearly with the length: Linformer and Performer.

Shape legend: B batch, H heads, T tokens, D head dimension, K projected length, M random features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization
from transformers.models.llama.modeling_llama import repeat_kv

from .attention import BaichuanAttention
from .configuration_baichuan import BaichuanConfig


class LinformerAttention(BaichuanAttention):
    """Softmax attention to K mixtures of the keys and values along the length (Wang et al. 2020).

    The mixing matrices are those of the layer, shared by its heads. A token is mixed in by its position, so that
    padding on either side changes nothing; texts are at most `max_position_embeddings` long.
    """

    takes_padding_mask = True
    absolute = True

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        length = config.max_position_embeddings
        # A linear layer each, for their initialisation and their names: its weight is (K, length).
        self.key_mixing = nn.Linear(length, config.projected_length, bias=False)
        self.value_mixing = nn.Linear(length, config.projected_length, bias=False)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        length, position_ids = self.config.max_position_embeddings, kwargs["position_ids"]
        if key.shape[2] > length:
            raise ValueError(
                f"A text of {key.shape[2]} tokens is longer than max_position_embeddings ({length}), the length that"
                " Linformer's projections were made for: truncate it."
            )
        key = self._mix(self.key_mixing.weight, key, attention_mask, position_ids)
        value = self._mix(self.value_mixing.weight, value, attention_mask, position_ids)
        groups = self.num_key_value_groups
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)  # (B, H, K, D)
        weights = F.softmax(query @ key.transpose(2, 3) * self.scaling, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = F.dropout(weights, self.config.attention_dropout, self.training)
        return (weights @ value).transpose(1, 2), weights

    def _mix(self, mixing: Tensor, x: Tensor, is_token: Tensor | None, position_ids: Tensor) -> Tensor:
        """(B, heads, T, D) -> (B, heads, K, D)."""
        if is_token is not None:
            x = x * is_token[:, None, :, None]
        return torch.einsum("btk,bhtd->bhkd", mixing.T[position_ids].expand(x.shape[0], -1, -1), x)


class PerformerAttention(BaichuanAttention):
    """FAVOR+ (Choromanski et al. 2021): exp(q . k) is the expected product of positive random features
    exp(w . x - |x|^2 / 2), for orthogonal w; then attention is two matrix products without a T x T matrix.

    The features are a buffer, saved with the weights. `redraw` draws new ones, which the paper does now and then in
    training.
    """

    takes_padding_mask = True
    absolute = True  # rotated by the same angle, two vectors keep their product, but not that of their features
    random_features: Tensor

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # The paper's choice: as many as make the error small for all of a batch's pairs.
        self.num_features = config.num_random_features or max(1, int(self.head_dim * math.log(self.head_dim)))
        self.register_buffer("random_features", torch.empty(self.num_features, self.head_dim))

    def reset_buffers(self) -> None:
        """Draw the features of a model that has not loaded any."""
        initialization.copy_(self.random_features, orthogonal_features(self.num_features, self.head_dim))

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw new random features."""
        self.random_features.copy_(orthogonal_features(self.num_features, self.head_dim))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        # Autocast would run these products in low precision in spite of the casts below.
        with torch.autocast(query.device.type, enabled=False):
            return self._attend_in_float32(query, key, value, attention_mask), None

    def _attend_in_float32(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any) -> Tensor:
        groups, dtype = self.num_key_value_groups, value.dtype
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        root = math.sqrt(self.scaling)
        query_exponents = self._exponents(query.float() * root)
        key_exponents = self._exponents(key.float() * root)
        if attention_mask is not None:
            key_exponents = key_exponents.masked_fill(~attention_mask[:, None, :, None], -torch.inf)
        # Any factor per query, or one for all keys, cancels: so the largest exponent is 0.
        query_features = (query_exponents - query_exponents.amax(-1, keepdim=True)).exp()
        largest = key_exponents.amax((-2, -1), keepdim=True)
        key_features = (key_exponents - largest.masked_fill(largest.isinf(), 0)).exp()  # (B, H, T, M)
        summed = key_features.transpose(2, 3) @ value.float()  # (B, H, M, D)
        norm = query_features @ key_features.sum(2)[..., None]  # (B, H, T, 1)
        output = query_features @ summed / norm.clamp(min=torch.finfo(torch.float32).tiny)
        return output.to(dtype).transpose(1, 2)

    def _exponents(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, M), in float32: an exponential of a rounded exponent is wrong by a factor."""
        return x @ self.random_features.float().T - x.square().sum(-1, keepdim=True) / 2


def orthogonal_features(num_features: int, dim: int) -> Tensor:
    """Rows (num_features, dim) in float32, normally distributed each, and orthogonal within every block of `dim`."""
    blocks = []
    for _ in range(math.ceil(num_features / dim)):
        # Not the default dtype, which is the model's while it is built: there is no such decomposition in bfloat16.
        rotation, triangle = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float32))
        rotation = rotation * triangle.diagonal().sign()  # without it, some directions are likelier than others
        lengths = torch.randn(dim, dim, dtype=torch.float32).norm(dim=-1, keepdim=True)
        blocks.append(rotation.T * lengths)
    return torch.cat(blocks)[:num_features]
