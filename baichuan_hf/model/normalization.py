"""Normalisation layers: (..., dim) -> same shape and dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_baichuan import BaichuanConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the statistics in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: Tensor) -> Tensor:
        # float32: a bfloat16 mean over thousands of squares keeps two or three digits.
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


NORMALIZATIONS: dict[str, type[nn.Module]] = {"rms_norm": RMSNorm}


def build_normalization(config: BaichuanConfig) -> nn.Module:
    """The norm that `config.norm_type` names."""
    return NORMALIZATIONS[config.norm_type](config.hidden_size, eps=config.rms_norm_eps)
