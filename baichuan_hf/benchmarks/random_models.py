"""Models with random weights: Baichuan, and the Llama of the same shape that it is held against."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig


def random_config(
    sizes: Mapping[str, int], *, length: int, llama: bool = False, alibi: bool = False
) -> PreTrainedConfig:
    """The configuration of a model of those sizes (see `SHAPES`) for texts of so many tokens."""
    if llama:
        return LlamaConfig(**sizes, max_position_embeddings=length)
    positions = "alibi" if alibi else "rope"
    return BaichuanConfig(**sizes, max_position_embeddings=length, position_embedding_type=positions)


def random_model(config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Built where it shall be, so that its weights need no room elsewhere."""
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def inference_dtype(device: torch.device) -> torch.dtype:
    """What is fast there: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
