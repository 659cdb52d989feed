"""Output heads of the language model: (..., hidden_size) -> (..., vocab_size), and the loss on their logits."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_baichuan import BaichuanConfig
from .fully_sharded import is_distributed
from .normalization import build_normalization


class NormHead(nn.Linear):
    """logits = x . w / |w| for every row w of the weight (Baichuan 2, 2023, section 2.3).

    The weight is never rewritten: rows are scaled after the product, so training, merging and saving see the weight as
    it is, and no normalised copy of it is held. Without gradients 1 / |w| is kept for the next call, since reading the
    weight twice for a token would show; it is computed anew when the weight is another one, was written to, or had a
    gradient.
    """

    EPS = 1e-12  # of torch.nn.functional.normalize, which the original calls

    # The weight (weakly), its version and address, and 1 / |w| of it.
    _kept: tuple[Any, int, int, Tensor] | None = None
    _watched: Any = None  # the weight (weakly) whose gradients make it forgotten
    _held: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        logits = F.linear(hidden_states, self.weight)
        scale = self.inverse_norms() if self._held is None else self._held
        # In place, so that a bfloat16 product is scaled in float32 and rounded once, without a float32 copy.
        logits = logits.mul_(scale)
        return logits if self.bias is None else logits + self.bias

    def inverse_norms(self) -> Tensor:
        """1 / |w| of every row, (vocab_size,) float32."""
        weight = self.weight
        if torch.compiler.is_compiling():
            return self._inverse_norms()
        if torch.is_grad_enabled() and weight.requires_grad:
            self._kept = None
            return self._inverse_norms()
        # FSDP and ZeRO write gathered weights behind the version counter, which tensors of inference mode lack; so do
        # fused optimisers, of which a gradient is the sign.
        if is_distributed() or weight.is_inference() or weight.grad is not None:
            return self._inverse_norms()
        state = (weight._version, weight.data_ptr())
        if self._kept is None or self._kept[0]() is not weight or self._kept[1:3] != state:
            if weight.is_cuda and torch.cuda.is_current_stream_capturing():
                return self._inverse_norms()  # which has no numbers before the recording is replayed
            self._watch(weight)
            # Not a tensor of inference mode, which training with a frozen head could not use later; to leave that mode
            # turns gradients on.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (weakref.ref(weight), *state, self._inverse_norms())
        return self._kept[3]

    def _watch(self, weight: Tensor) -> None:
        """Keep nothing of the weight once it has a gradient."""
        if not weight.requires_grad or (self._watched is not None and self._watched() is weight):
            return
        head = weakref.ref(self)

        def forget(_: Tensor) -> None:
            if (watching := head()) is not None:
                watching._kept = None

        weight.register_post_accumulate_grad_hook(forget)
        self._watched = weakref.ref(weight)

    @contextmanager
    def holding_norms(self) -> Iterator[None]:
        """For code that is traced, which cannot see whether the weight changes: it does not, in this context."""
        self._held = self.inverse_norms()
        try:
            yield
        finally:
            self._held = None

    def _inverse_norms(self) -> Tensor:
        weight = self.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        traced = torch.compiler.is_compiling() or (torch.is_grad_enabled() and weight.requires_grad)
        if weight.device.type == "cpu" and weight.dtype != dtype and not traced:
            # In parts that stay in the cache: the whole at once takes a CPU ten times as long.
            part = weight.new_empty(256, weight.shape[1], dtype=dtype)
            norms = torch.cat(
                [torch.linalg.vector_norm(part[: len(rows)].copy_(rows), dim=-1) for rows in weight.split(256)]
            )
        else:
            norms = torch.linalg.vector_norm(weight, dim=-1, dtype=dtype)
        return norms.clamp(min=self.EPS).reciprocal()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_watched")}

    def normalized_weight(self) -> Tensor:
        """The rows as they count, of length 1: a copy of the weight, (vocab_size, hidden_size)."""
        return F.normalize(self.weight.float(), dim=-1, eps=self.EPS).to(self.weight.dtype)


LM_HEADS: dict[bool, type[nn.Linear]] = {False: nn.Linear, True: NormHead}


def build_lm_head(config: BaichuanConfig, *, bias: bool = False) -> nn.Linear:
    """The output head that `config.normalize_lm_head` names."""
    return LM_HEADS[config.normalize_lm_head](config.hidden_size, config.vocab_size, bias=bias)


class MaskedLMHead(nn.Module):
    """decoder(norm(act(dense(x)))), the head of BERT (Devlin et al. 2019), with a bias in both linear layers."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.norm = build_normalization(config)
        self.decoder: nn.Module = build_lm_head(config, bias=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.norm(self.act_fn(self.dense(hidden_states))))


def fit_output_embeddings(new_embeddings: nn.Module, config: BaichuanConfig) -> nn.Module:
    """A plain linear layer as the kind of head that the config names: that is what `resize_token_embeddings` hands
    over. Anything else stays as it is."""
    if not config.normalize_lm_head or type(new_embeddings) is not nn.Linear:
        return new_embeddings
    bias = new_embeddings.bias is not None
    head = NormHead(new_embeddings.in_features, new_embeddings.out_features, bias=bias, device="meta")
    head.weight, head.bias = new_embeddings.weight, new_embeddings.bias
    head._is_hf_initialized = True  # type: ignore[assignment]  # or post_init would draw the weight anew
    return head


def max_z_loss(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    shifted: bool = True,
    **kwargs: Any,
) -> Tensor:
    """The square of the largest logit, averaged over all positions, ignored ones included (Baichuan 2).

    Args:
        logits: (B, T, vocab_size).
        labels: (B, T), of which only the count of labels that are not -100 matters.
        num_items_in_batch: labels in all accumulated batches, as Trainer passes it; the mean is then weighted with
            this batch's share of them, so that accumulation gives an average and not a sum.
        shifted: whether each position predicts the next label, as in a causal model.
    """
    if shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    loss = logits.float().amax(dim=-1).square().mean()
    if num_items_in_batch is None:
        return loss
    return loss * (labels != -100).sum() / num_items_in_batch
