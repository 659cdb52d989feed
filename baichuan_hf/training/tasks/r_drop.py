"""R-Drop: the same row under two dropouts should get the same answer (Liang et al. 2021)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..trainer import OrderedTrainer


class RDropTrainer(OrderedTrainer):
    """Adds `alpha` times the divergence of two passes to the loss of a classifier with one label for each text."""

    def __init__(self, *args: Any, alpha: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
        loss, outputs = super().compute_loss(model, twice, True, num_items_in_batch)
        first, second = outputs.logits.float().log_softmax(dim=-1).chunk(2)
        forward = F.kl_div(first, second, reduction="batchmean", log_target=True)
        backward = F.kl_div(second, first, reduction="batchmean", log_target=True)
        loss = loss + self.alpha * (forward + backward) / 2
        return (loss, outputs) if return_outputs else loss
