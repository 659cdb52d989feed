"""Smaller models: layers and heads taken out, weights set to zero, each by a published measure of importance."""

from .calibration import Quality, make_batches, measure_quality
from .folders import prune_folder
from .importance import block_influence, head_importance, input_norms
from .structure import evenly_spread, keep_heads, keep_layers
from .weights import prune_weights, zero_share


__all__ = [
    "Quality",
    "block_influence",
    "evenly_spread",
    "head_importance",
    "input_norms",
    "keep_heads",
    "keep_layers",
    "make_batches",
    "measure_quality",
    "prune_folder",
    "prune_weights",
    "zero_share",
]
