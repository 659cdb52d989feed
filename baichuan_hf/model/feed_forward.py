"""Feed-forward layers: (..., hidden_size) -> same shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_baichuan import BaichuanConfig
from .experts import MixtureOfExperts
from .kernels import is_exporting, use_triton


# Tokens whose inner states are in memory at once where no gradients need them: of a long text they would take several
# times what its hidden states do, and this many already fill a GPU.
TOKENS_AT_ONCE = 4096


class FeedForward(nn.Module):
    """down(act(up(x))): two layers (Vaswani et al. 2017)."""

    def __init__(self, dim: int, inner_dim: int, *, activation: str, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, inner_dim, bias=bias)
        self.down_proj = nn.Linear(inner_dim, dim, bias=bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu, ReGLU with relu, GLU with sigmoid (Shazeer
    2020)."""

    def __init__(self, dim: int, inner_dim: int, *, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner_dim, bias=bias)
        self.down_proj = nn.Linear(inner_dim, dim, bias=bias)
        self.up_proj = nn.Linear(dim, inner_dim, bias=bias)
        self.activation = activation
        self.act_fn = ACT2FN[activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self._is_long(hidden_states):
            parts = [self._transform(part) for part in hidden_states.split(TOKENS_AT_ONCE, dim=-2)]
            return torch.cat(parts, dim=-2)
        return self._transform(hidden_states)

    def _is_long(self, hidden_states: Tensor) -> bool:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return hidden_states.shape[-2] > TOKENS_AT_ONCE

    def _transform(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if self.activation in ("silu", "swish") and use_triton(gate, up):
            from .triton_kernels import SiluMul

            return self.down_proj(SiluMul.apply(gate, up))
        return self.down_proj(_written(self.act_fn(gate) * up))


def _written(states: Tensor) -> Tensor:
    """`states`, which torch.compile shall write to memory: a single token's it would compute anew for every row of the
    matrix that they are multiplied with."""
    if not torch.compiler.is_compiling() or is_exporting() or states.shape[:-1].numel() != 1:
        return states
    return states.as_strided(states.shape, states.stride())


FEED_FORWARDS: dict[bool, type[FeedForward | GatedFeedForward]] = {False: FeedForward, True: GatedFeedForward}


def build_feed_forward(config: BaichuanConfig, layer_idx: int) -> nn.Module:
    """The feed-forward layer that `config.gated_mlp` and `config.hidden_act` name, or experts of that kind."""
    if config.is_sparse_layer(layer_idx):
        return MixtureOfExperts(config)
    return FEED_FORWARDS[config.gated_mlp](
        config.hidden_size, config.intermediate_size, activation=config.hidden_act, bias=config.mlp_bias
    )
