"""Normalisation layers: (..., dim) -> same shape and dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_baichuan import BaichuanConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the statistics in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self._has_kernel(hidden_states):
            x = F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
            return x if self.bias is None else x + self.bias
        # float32: a bfloat16 mean over thousands of squares keeps two or three digits.
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        x = self.weight * x.to(hidden_states.dtype)
        return x if self.bias is None else x + self.bias

    def _has_kernel(self, hidden_states: Tensor) -> bool:
        """Whether torch has one kernel for the whole norm, which on a GPU takes an eighth of the time of its eight
        operations; on a CPU it has none. It rounds once, after the product with the weight."""
        return hidden_states.is_cuda and hidden_states.dtype == self.weight.dtype

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}, bias={self.bias is not None}"


# DeepNorm is LayerNorm after a scaled residual; the scales are below.
NORMALIZATIONS: dict[str, type[nn.Module]] = {
    "rms_norm": RMSNorm,
    "layer_norm": nn.LayerNorm,
    "deep_norm": nn.LayerNorm,
}


def build_normalization(config: BaichuanConfig) -> nn.Module:
    """The norm that `config.norm_type` names."""
    return NORMALIZATIONS[config.norm_type](config.hidden_size, eps=config.rms_norm_eps, bias=config.norm_bias)


def residual_scale(config: BaichuanConfig) -> float:
    """DeepNet's alpha, by which a residual is multiplied before a sublayer's output is added; else 1."""
    return _deep_norm_scales(config)[0] if config.norm_type == "deep_norm" else 1.0


def initial_gain(config: BaichuanConfig) -> float:
    """DeepNet's beta, by which the initial weights of values, outputs and feed-forward layers are scaled; else 1."""
    return _deep_norm_scales(config)[1] if config.norm_type == "deep_norm" else 1.0


def _deep_norm_scales(config: BaichuanConfig) -> tuple[float, float]:
    """Alpha and beta of Wang et al. 2022, figure 2."""
    layers = config.num_hidden_layers
    if config.add_cross_attention:
        return (3 * layers) ** (1 / 4), (12 * layers) ** (-1 / 4)
    if config.num_decoder_layers is not None:
        depth = layers**4 * config.num_decoder_layers
        return 0.81 * depth ** (1 / 16), 0.87 * depth ** (-1 / 16)
    return (2 * layers) ** (1 / 4), (8 * layers) ** (-1 / 4)
