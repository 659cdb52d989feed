"""Training that leaves the zeros of a pruned model where they are."""

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback


class KeepZeros(TrainerCallback):
    """Sets the weights of matrices that are zero when training begins to zero again after each step.

    Biases, norms and embeddings are left alone. On a run that is resumed they are those of its checkpoint, the same.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def on_train_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
        self.kept = [(weight, weight != 0) for weight in weights if not weight.all()]
        if not self.kept:
            raise ValueError("--keep-zeros: no weight of the model is zero; prune it first, by baichuan-hf prune")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for weight, mask in self.kept:
            weight.mul_(mask)
