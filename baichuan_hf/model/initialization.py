"""Schemes for the initial weights of attention and feed-forward layers; embeddings and heads are always normal."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import BaichuanAttention, BaichuanCrossAttention
from .configuration_baichuan import BaichuanConfig
from .experts import MixtureOfExperts
from .feed_forward import FeedForward, GatedFeedForward
from .normalization import initial_gain


def normal(weight: Tensor, config: BaichuanConfig) -> None:
    weight.normal_(std=config.initializer_range)


def xavier_uniform(weight: Tensor, config: BaichuanConfig) -> None:
    """Glorot & Bengio 2010."""
    nn.init.xavier_uniform_(weight)


def kaiming_normal(weight: Tensor, config: BaichuanConfig) -> None:
    """He et al. 2015."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def deep_net(weight: Tensor, config: BaichuanConfig) -> None:
    """Xavier's normal form, as in Wang et al. 2022; `initial_gain` scales it where DeepNet does."""
    nn.init.xavier_normal_(weight)


def small(weight: Tensor, config: BaichuanConfig) -> None:
    """Xavier's normal form of a layer from `hidden_size` to four times that, for all (Nguyen & Salazar 2019)."""
    weight.normal_(std=math.sqrt(2 / (5 * config.hidden_size)))


INITIALIZERS: dict[str, Callable[[Tensor, BaichuanConfig], None]] = {
    "normal": normal,
    "xavier_uniform": xavier_uniform,
    "kaiming_normal": kaiming_normal,
    "deep_net": deep_net,
    "small": small,
}

# The value and output projections and the feed-forward layers, which DeepNet scales; queries and keys it does not.
SCALED_PROJECTIONS = ("v_proj", "o_proj", "v_global_proj", "gate_proj", "up_proj", "down_proj", "experts")
PROJECTED = (BaichuanAttention, BaichuanCrossAttention, FeedForward, GatedFeedForward, MixtureOfExperts)


def mark_projections(model: nn.Module, config: BaichuanConfig) -> None:
    """Note on every linear layer, router and experts of attention and feed-forward layers what its initial weights are
    multiplied with: transformers initialises module by module, and a module does not know its place."""
    gain = initial_gain(config)
    for module in model.modules():
        if isinstance(module, PROJECTED):
            for name, child in module.named_children():
                scaled = gain if name in SCALED_PROJECTIONS else 1.0
                child.initial_gains = (1.0, 1.0, gain) if name == "W_pack" else (scaled,)  # type: ignore[assignment]


@torch.no_grad()
def initialize_projection(module: nn.Module, config: BaichuanConfig) -> None:
    """Draw the weights of a marked module by `config.initializer_type`. Weights that were loaded stay."""
    gains: tuple[float, ...] = module.initial_gains  # type: ignore[assignment]
    draw = INITIALIZERS[config.initializer_type]
    if isinstance(module, nn.Linear) and draw is normal and set(gains) == {1.0}:
        return  # transformers has drawn it so
    for name, parameter in module.named_parameters(recurse=False):
        if name == "bias" or getattr(parameter, "_is_hf_initialized", False):
            continue
        if parameter.ndim == 3:  # those of experts are stacked, and a gate stands on its projection
            matrices = [part for expert in parameter for part in expert.chunk(2 if name == "gate_up_proj" else 1)]
        else:
            matrices = list(parameter.chunk(len(gains)))
        for index, matrix in enumerate(matrices):
            draw(matrix, config)
            matrix.mul_(gains[index % len(gains)])
