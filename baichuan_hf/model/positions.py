"""Position embeddings: what `config.position_embedding_type` names. Each acts in one of three places, see `Positions`.

Shape legend: B batch, H heads, T queries, S keys, D head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .configuration_baichuan import BaichuanConfig
from .kernels import use_triton
from .position_biases import AlibiBias, RelativeBias
from .position_protocol import Positions


class NoPositions(Positions):
    """None: a causal model can still tell order from what each token sees (Haviv et al. 2022)."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()


class RotaryEmbedding(Positions, LlamaRotaryEmbedding):
    """Rotary position embedding (Su et al. 2021) with every scaling of transformers' `rope_parameters`.

    transformers itself initialises the frequencies, knowing this module by its name and attributes.
    """

    def rotation(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self(hidden_states, position_ids)
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat([first, -second], dim=-1)


class SinusoidalPositions(Positions):
    """Adds sin(p / 10000^(2i/d)) in the first half of the dimensions and cos in the second (Vaswani et al. 2017; the
    paper writes them in turns, its implementation, tensor2tensor, and Marian in halves)."""

    absolute = True
    frequencies: Tensor

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.dim = config.hidden_size
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def _frequencies(self) -> Tensor:
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim
        return torch.exp(-math.log(10000.0) * exponents)

    def reset_buffers(self) -> None:
        initialization.copy_(self.frequencies, self._frequencies())

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        angles = position_ids[..., None].float() * self.frequencies
        sines = torch.cat([angles.sin(), angles.cos()[..., : self.dim // 2]], dim=-1)
        return inputs_embeds + sines.to(inputs_embeds.dtype)


class LearnedPositions(Positions):
    """Adds a vector per position, learned for `max_position_embeddings` of them (Gehring et al. 2017, GPT-2, BERT)."""

    absolute = True

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def embed(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        return inputs_embeds + self.embedding(position_ids)


POSITIONS: dict[str, type[Positions]] = {
    "rope": RotaryEmbedding,
    "alibi": AlibiBias,
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "relative": RelativeBias,
    "none": NoPositions,
}


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys or both at their positions: without Triton to the bit transformers' `apply_rotary_pos_emb`.

    Args:
        states: (B, H, T, D).
        cos: (B or 1, T, D), of `Positions.rotation`.
        sin: the like, with the sign of its second half turned.
    """
    if use_triton(states):
        from .triton_kernels import Rotation

        return Rotation.apply(states, cos, sin)
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] - torch.cat([second, first], dim=-1) * sin[:, None]


def build_positions(config: BaichuanConfig) -> Positions:
    """The position embedding that `config.position_embedding_type` names."""
    return POSITIONS[config.position_embedding_type](config)
