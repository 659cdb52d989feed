"""What the models return beyond the fields that transformers' outputs have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput


class _RecordedOutputs:
    def __setitem__(self, key: str, value: Any) -> None:
        # transformers records what was asked for also where the model has none of it: cross-attentions, routers.
        if not (isinstance(value, tuple) and not value):
            super().__setitem__(key, value)  # type: ignore[misc]


@dataclass
class BaichuanModelOutput(_RecordedOutputs, BaseModelOutputWithPast):
    """Where the model has them: `pooler_output` (B, hidden_size), `cross_attentions` of each layer (B, H, T, S),
    `router_logits` of each sparse layer (B * T, experts)."""

    pooler_output: Tensor | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class BaichuanCausalLMOutput(CausalLMOutputWithPast):
    """As `BaichuanModelOutput`, and `aux_loss`, the load-balancing loss of the experts without its coefficient."""

    aux_loss: Tensor | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class BaichuanMaskedLMOutput(MaskedLMOutput):
    """As `BaichuanCausalLMOutput`, for an encoder."""

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
