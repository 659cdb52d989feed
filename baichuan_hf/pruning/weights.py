"""Weights of linear layers set to zero, in place: the least of each row, or of each few neighbours (2:4)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .structure import base_of


def linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """Those of attention and feed-forward layers; embeddings, heads and stacked experts are not among them."""
    return [module for module in base_of(model).layers.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def prune_weights(
    model: PreTrainedModel,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    norms: Mapping[nn.Linear, Tensor] | None = None,
) -> None:
    """Set to zero a share of each row's weights, or all but the best 2 of every 4 inputs (`pattern="2:4"`).

    Best is |weight|, with `norms` (of `input_norms`) |weight| times its input's norm (Wanda, Sun et al. 2023). Raises
    ValueError for a share or pattern that is none, and for a layer whose width the pattern does not divide.
    """
    if (sparsity is None) == (pattern is None):
        raise ValueError("give either sparsity, a share of the weights, or pattern, such as '2:4'")
    if sparsity is not None and not 0 < sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie between 0 and 1")
    for linear in linear_layers(model):
        kept, group = _kept_of(linear, sparsity, pattern)
        scores = linear.weight.abs().float()
        if norms is not None:
            scores *= norms[linear]
        scores = scores.unflatten(1, (-1, group))  # (out, in / group, group)
        mask = torch.zeros_like(scores).scatter_(-1, scores.topk(kept, sorted=False).indices, 1)
        linear.weight *= mask.flatten(1).to(linear.weight.dtype)


def _kept_of(linear: nn.Linear, sparsity: float | None, pattern: str | None) -> tuple[int, int]:
    """How many of how many neighbouring weights stay."""
    if sparsity is not None:
        return linear.in_features - round(sparsity * linear.in_features), linear.in_features
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern or "")
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"pattern is {pattern!r}; it must be of the form 2:4, where 2 of every 4 weights stay")
    kept, group = int(match[1]), int(match[2])
    if linear.in_features % group:
        raise ValueError(f"pattern {pattern} does not divide a layer of {linear.in_features} inputs")
    return kept, group


def zero_share(model: PreTrainedModel) -> float:
    """The share of zeros among the weights that `prune_weights` prunes."""
    weights = [linear.weight.detach().dequantize() for linear in linear_layers(model)]  # themselves, unless quantised
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
