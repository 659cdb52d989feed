"""TRL's trainers on a normalised head: they multiply the hidden states with the weight of the head themselves."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

from ..model.lm_head import NormHead


def normalize_fused_head(model: Any) -> None:
    """Let the fused head that TRL has put into `model` (`add_fused_lm_head`) see normalised rows.

    TRL takes the weight of the model's output embeddings as it is, which for a `NormHead` gives, without a word, the
    log-probabilities of another model. Call it once the trainer is built; models with another head stay as they are.
    """
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused_forward(*args, **kwargs)
        head = model.get_output_embeddings()
        model.get_output_embeddings = lambda: SimpleNamespace(weight=head.normalized_weight(), bias=head.bias)
        try:
            return fused_forward(*args, fused_lm_head=True, **kwargs)
        finally:
            del model.get_output_embeddings

    if isinstance(model.get_output_embeddings(), NormHead):
        model.forward = forward
