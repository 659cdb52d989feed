"""The loss of a language model without ever holding its logits: for 125,696 classes they are 0.5 MB a token.

Shape legend: B batch, T tokens, N tokens of the batch, n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_torchdynamo_compiling

from .lm_head import NormHead


# Logits that exist at once: 256 MiB of float32.
MAX_LOGITS = 2**26

# The sum of the losses of states (n, hidden_size) by a weight (V, hidden_size), a bias (V,) or None, targets (n,) of
# which -100 is ignored, and label smoothing, in one kernel.
FusedLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor, float], Tensor]


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
    fused: FusedLoss | None = None,
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy, and the max-z loss of Baichuan2, of what `head` makes of the hidden states.

    A part of the tokens at a time. A plain linear or normalised head gets its gradients in the same pass, as in Liger
    (Hsu et al. 2024). Any other, with adapters, quantised or sharded, runs once more in the backward pass. Equal to
    the loss on whole logits, gradients too.

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
        fused: a kernel that takes the place of the chunks where there is no max-z loss and the head is plain.
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

    num_labels = (targets != -100).sum()
    if num_items_in_batch is None:
        num_items_in_batch = num_labels
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(states.device)
    # An average over all positions, weighted with this batch's share of the labels as in `max_z_loss`.
    z_weight = z_loss_weight / len(states) * num_labels if z_loss_weight else None
    size = max(1, max_logits // vocab_size)
    if fused is not None and z_weight is None and _is_plain(head):
        return _fused(fused, head, states, targets, label_smoothing) / num_items_in_batch
    options = (states, targets, z_weight, label_smoothing, size)
    if torch.is_grad_enabled() and _is_plain(head):
        return _one_pass(head, *options) / num_items_in_batch
    return _two_passes(head, *options) / num_items_in_batch


def _is_plain(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether what the head computes follows from its weight: neither its class nor a hook does anything else."""
    hooks = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) in (nn.Linear, NormHead) and type(head.weight) is nn.Parameter and not hooks


def _two_passes(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    z_weight: Tensor | None,
    label_smoothing: float,
    size: int,
) -> Tensor:
    def sums(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        entropy = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        return entropy, entropy.new_zeros(()) if z_weight is None else logits.amax(dim=-1).square().sum()

    parts = [
        checkpoint(sums, chunk, target, use_reentrant=False, preserve_rng_state=False)
        for chunk, target in zip(states.split(size), targets.split(size), strict=True)
    ]
    entropy, z_loss = (torch.stack(part).sum() for part in zip(*parts, strict=True))
    return entropy if z_weight is None else entropy + z_weight * z_loss


def _fused(fused: FusedLoss, head: nn.Linear, states: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    states = _autocast(states)
    weight = head.weight
    if isinstance(head, NormHead):
        weight = F.normalize(weight, dim=-1, eps=NormHead.EPS)
    bias = None if head.bias is None else head.bias.to(states.dtype)
    return fused(states, weight.to(states.dtype), bias, targets, label_smoothing)


def _one_pass(
    head: nn.Linear,
    states: Tensor,
    targets: Tensor,
    z_weight: Tensor | None,
    label_smoothing: float,
    size: int,
) -> Tensor:
    states = _autocast(states)
    some_ignored = z_weight is not None or is_torchdynamo_compiling()
    if not some_ignored:
        # What has no label loses nothing: what a user says in a chat, the words that are not masked.
        is_label = targets != -100
        states, targets = states[is_label], targets[is_label]
    scale = head.inverse_norms().detach() if isinstance(head, NormHead) else None
    return _LinearCrossEntropy.apply(
        states, head.weight, head.bias, targets, z_weight, label_smoothing, scale, size, some_ignored
    )


def _autocast(states: Tensor) -> Tensor:
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def _scaled(logits: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`logits` times `scale` as `dtype`, in place if they are: one pass over memory, which is what takes the time."""
    if scale is None:
        return logits.to(dtype)
    return torch.mul(logits, scale, out=logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the losses, and the gradients with it: each chunk's logits turn into their own gradient and are gone.

    A sum and not a mean, whose gradients float16 could not hold before the loss is scaled.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,  # (N, hidden_size)
        weight: Tensor,  # (V, hidden_size)
        bias: Tensor | None,
        targets: Tensor,  # (N,)
        z_weight: Tensor | None,
        label_smoothing: float,
        scale: Tensor | None,  # (V,), 1 over the lengths of the weight's rows if these are normalised
        size: int,
        some_ignored: bool,
    ) -> Tensor:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(states.dtype)
        states_grad = torch.empty_like(states) if needs_states else None
        # Summed over the chunks in float32, whatever the weight is.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=states.device)

        for start in range(0, len(states), size):
            part = slice(start, start + size)
            chunk, target = states[part], targets[part]
            logits = _scaled(F.linear(chunk, matrix), scale, torch.float32)  # (n, V)
            if bias is not None:
                logits.add_(bias)
            if z_weight is not None:
                largest, place = logits.max(dim=-1)
                loss += largest.square().sum() * z_weight
            log_probabilities = logits.log_softmax(dim=-1)
            del logits
            entropy = F.nll_loss(log_probabilities, target, reduction="sum")
            counts = target != -100
            if label_smoothing:
                spread = -(log_probabilities.mean(dim=-1) * counts).sum()
                entropy = (1 - label_smoothing) * entropy + label_smoothing * spread
            loss += entropy

            gradient = log_probabilities.exp_()
            if label_smoothing:
                gradient.sub_(label_smoothing / gradient.shape[-1])
            expected = gradient.new_full((len(target), 1), label_smoothing - 1)
            gradient.scatter_add_(1, target.clamp(min=0)[:, None], expected)
            if some_ignored:
                gradient.mul_(counts[:, None])
            if z_weight is not None:
                gradient.scatter_add_(1, place[:, None], (2 * z_weight * largest)[:, None])
            if bias_grad is not None:
                bias_grad += gradient.sum(dim=0)
            gradient = _scaled(gradient, scale, states.dtype)
            if states_grad is not None:
                torch.mm(gradient, matrix, out=states_grad[part])
            if weight_grad is not None:
                weight_grad += gradient.t() @ chunk

        if weight_grad is not None and scale is not None:
            # Of a row that is scaled to length 1 only what is at right angles to it counts.
            along = (weight_grad * weight).sum(dim=-1, dtype=torch.float32) * scale.square()
            weight_grad.addcmul_(along[:, None], weight, value=-1)
        ctx.gradients = [states_grad, weight_grad, bias_grad]
        ctx.dtypes = [states.dtype, weight.dtype, None if bias is None else bias.dtype]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradients of this loss are gone after the first backward(), whatever retain_graph says: pass"
                " skip_logits=False to keep the logits instead."
            )
        # Given away, so that autograd need not copy them.
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else gradient.mul_(loss_grad).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, *[None] * 6)
