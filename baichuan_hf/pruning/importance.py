"""What a layer, a head or a weight contributes, measured on batches of text.

Shape legend: B batch, T tokens, H heads, D head dimension.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .structure import attentions_of, base_of
from .weights import linear_layers


Batches = Iterable[dict[str, Tensor]]


@torch.no_grad()
def block_influence(model: PreTrainedModel, batches: Batches) -> Tensor:
    """1 - cos(what goes into a layer, what comes out), averaged over tokens: (layers,) (ShortGPT, Men et al. 2024)."""
    layers = base_of(model).layers
    total, count = torch.zeros(len(layers)), 0
    mask: Tensor = torch.ones(1)

    def add(index: int, hidden_states: Tensor, output: Tensor) -> None:
        similarity = torch.cosine_similarity(hidden_states.float(), output.float(), dim=-1)  # (B, T)
        total[index] += ((1 - similarity) * mask).sum().cpu()

    hooks = [
        layer.register_forward_hook(lambda module, args, output, index=index: add(index, args[0], output))
        for index, layer in enumerate(layers)
    ]
    with _removed_at_the_end(hooks):
        for batch in batches:
            mask = batch["attention_mask"]
            count += int(mask.sum())
            model(**batch)
    return total / count


def head_importance(model: PreTrainedModel, batches: Batches) -> Tensor:
    """|d loss / d gate| of a gate on each head's output, averaged over texts: (layers, heads) (Michel et al. 2019).

    With grouped queries the sum over a group: (layers, key/value heads).
    """
    config, attentions = model.config, attentions_of(model)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    total, count = torch.zeros(len(attentions), heads), 0
    gates: list[Tensor] = []

    def gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        values = args[0]  # (B, T, H * D)
        gates.append(values.new_ones(values.shape[0], 1, heads, 1, requires_grad=True))  # for every text its own
        return ((values.unflatten(-1, (heads, -1)) * gates[-1]).flatten(-2),)

    hooks = [attention.o_proj.register_forward_pre_hook(gate) for attention in attentions]
    with _removed_at_the_end(hooks), torch.enable_grad():
        for batch in batches:
            gates.clear()
            loss = model(**batch).loss
            gradients = torch.stack(torch.autograd.grad(loss, gates))  # (layers, B, 1, H, 1)
            rows = len(batch["input_ids"])
            total += rows * gradients.abs().sum((1, 2, 4)).float().cpu()  # the loss is a mean over the texts
            count += rows
    return (total / count).unflatten(-1, (groups, -1)).sum(-1)


@torch.no_grad()
def input_norms(model: PreTrainedModel, batches: Batches) -> dict[nn.Linear, Tensor]:
    """The L2 norm over all tokens of each input of each linear layer: (in_features,) (Wanda, Sun et al. 2023)."""
    squares: dict[nn.Linear, Tensor] = {}
    mask: Tensor = torch.ones(1)

    def add(module: nn.Linear, args: tuple[Any, ...]) -> None:
        values = args[0].float() * mask[..., None]
        squares[module] = squares.get(module, 0) + values.square().sum((0, 1))

    hooks = [layer.register_forward_pre_hook(add) for layer in linear_layers(model)]
    with _removed_at_the_end(hooks):
        for batch in batches:
            mask = batch["attention_mask"]
            model(**batch)
    return {module: square.sqrt() for module, square in squares.items()}


@contextmanager
def _removed_at_the_end(hooks: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
