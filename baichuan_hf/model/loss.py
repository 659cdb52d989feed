"""The loss of a language model without ever holding its logits: for 125,696 classes they are 0.5 MB a token.

Shape legend: B batch, T tokens, N tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


# Logits that exist at once: 256 MiB of float32.
MAX_LOGITS = 2**26


def chunked_loss(
    head: nn.Module,
    hidden_states: Tensor,
    labels: Tensor | None,
    *,
    vocab_size: int,
    shifted: bool = True,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    z_loss_weight: float = 0.0,
    label_smoothing: float = 0.0,
    max_logits: int = MAX_LOGITS,
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy, and the max-z loss of Baichuan2, of what `head` makes of the hidden states.

    The head runs on a part of the tokens at a time, and once more in the backward pass, so that it may be anything: a
    plain or normalised one, with adapters, quantised or sharded. Equal to the loss on whole logits, gradients too.

    Args:
        head: (n, hidden_size) -> (n, V).
        hidden_states: (B, T, hidden_size).
        labels: (B, T) token ids; -100 is ignored.
        vocab_size: V, which decides how many tokens are a chunk.
        shifted: whether each position predicts the next label, as in a causal model.
        shift_labels: (B, T) labels that are shifted already, in place of `labels`.
        num_items_in_batch: number of labels to divide by, as Trainer passes it; by default those that are not ignored.
        z_loss_weight: weight of the square of the largest logit, averaged over all positions (`max_z_loss`).
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        max_logits: number of logits that may exist at once.
        kwargs: not used; what transformers passes to every loss.
    """
    if shift_labels is not None:
        labels = shift_labels
    elif labels is None:
        raise ValueError("Give labels or shift_labels: without them there is no loss.")
    elif shifted:
        hidden_states, labels = hidden_states[..., :-1, :], labels[..., 1:]
    states = hidden_states.flatten(0, -2)  # (N, hidden_size)
    targets = labels.flatten().to(states.device)

    def sums(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        entropy = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        return entropy, logits.amax(dim=-1).square().sum() if z_loss_weight else entropy.new_zeros(())

    size = max(1, max_logits // vocab_size)
    parts = [
        checkpoint(sums, chunk, target, use_reentrant=False, preserve_rng_state=False)
        for chunk, target in zip(states.split(size), targets.split(size), strict=True)
    ]
    entropy, z_loss = (torch.stack(part).sum() for part in zip(*parts, strict=True))

    num_labels = (targets != -100).sum()
    if num_items_in_batch is None:
        num_items_in_batch = num_labels
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(states.device)
    loss = entropy / num_items_in_batch
    if z_loss_weight:
        # An average over all positions, weighted with this batch's share of the labels as in `max_z_loss`.
        loss = loss + z_loss_weight * z_loss / len(states) * (num_labels / num_items_in_batch)
    return loss
