"""Output heads of the language model: (..., hidden_size) -> (..., vocab_size), and the loss on their logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_baichuan import BaichuanConfig


class NormHead(nn.Linear):
    """logits = x . w / |w| for every row w of the weight (Baichuan 2, 2023, section 2.3).

    The weight is never rewritten: rows are scaled after the product, so training, merging and saving see the weight as
    it is, and no normalised copy of it is held.
    """

    EPS = 1e-12  # of torch.nn.functional.normalize, which the original calls

    def forward(self, hidden_states: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(self.weight, dim=-1, dtype=torch.float32)
        logits = F.linear(hidden_states, self.weight)
        # In place, so that a bfloat16 product is scaled in float32 and rounded once, without a float32 copy.
        return logits.mul_(norms.clamp(min=self.EPS).reciprocal())


LM_HEADS: dict[bool, type[nn.Linear]] = {False: nn.Linear, True: NormHead}


def build_lm_head(config: BaichuanConfig) -> nn.Linear:
    """The output head that `config.normalize_lm_head` names."""
    return LM_HEADS[config.normalize_lm_head](config.hidden_size, config.vocab_size, bias=False)


def max_z_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
) -> Tensor:
    """The square of the largest logit, averaged over all shifted positions, ignored ones included (Baichuan 2).

    Args:
        logits: (B, T, vocab_size).
        labels: (B, T), of which only the count of labels that are not -100 matters.
        num_items_in_batch: labels in all accumulated batches, as Trainer passes it; the mean is then weighted with
            this batch's share of them, so that accumulation gives an average and not a sum.
    """
    loss = logits[..., :-1, :].float().amax(dim=-1).square().mean()
    if num_items_in_batch is None:
        return loss
    return loss * (labels[..., 1:] != -100).sum() / num_items_in_batch
