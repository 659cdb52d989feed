"""Layers that multiply one token with torchao's weights of 8 and 4 bits by kernels of our own; what comes in larger
numbers, and any other weight, is left to torchao.

The layers take the place of the model's within a compiled decoding step (`decoding`): only their class differs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .feed_forward import GatedFeedForward
from .kernels import runs_ptx


class WeightOnlyLinear(nn.Linear):
    """A linear layer whose products of one token are a kernel's."""

    weight: Any  # a tensor of torchao

    @staticmethod
    @abstractmethod
    def fits(layer: nn.Linear) -> bool:
        """Whether this class can take the place of the layer's."""

    @abstractmethod
    def arranged(self, inputs: Tensor) -> Tensor:
        """(in_features,) in the order that the kernels take."""

    @abstractmethod
    def product(self, inputs: Tensor) -> Tensor:
        """(out_features,), without the bias, of such inputs."""

    @abstractmethod
    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        """silu(this product) * that of `up_proj`, arranged for the next."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not _is_one_token(hidden_states):
            return super().forward(hidden_states)
        product = self.product(self.arranged(hidden_states.reshape(-1))).view(*hidden_states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


class Int8Linear(WeightOnlyLinear):
    """With `Int8WeightOnlyConfig`: a scale a row."""

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        weight: Any = layer.weight
        if type(weight).__name__ != "Int8Tensor" or weight.act_quant_kwargs is not None:
            return False
        # torchao looks at no zero point either where a row has one scale.
        one_scale = weight.scale.numel() == layer.out_features and weight.act_pre_scale is None
        whole = layer.in_features % 4 == layer.out_features % 4 == 0
        return one_scale and whole and weight.qdata.is_contiguous()

    def arranged(self, inputs: Tensor) -> Tensor:
        return inputs

    def product(self, inputs: Tensor) -> Tensor:
        from .matvec_kernels import int8_matvec

        return int8_matvec(inputs, self.weight.qdata, self.weight.scale)

    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        from .matvec_kernels import int8_gated_matvec

        gate, up = self.weight, up_proj.weight
        return int8_gated_matvec(inputs, gate.qdata, gate.scale, up.qdata, up.scale)


class Int4Linear(WeightOnlyLinear):
    """With `Int4WeightOnlyConfig` in the format `tile_packed_to_4d`, tinygemm's."""

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        weight: Any = layer.weight
        if type(weight).__name__ != "Int4TilePackedTo4dTensor" or weight.act_pre_scale is not None:
            return False
        group = weight.block_size[-1]
        whole = layer.in_features % 128 == layer.out_features % 16 == 0
        return whole and (group in (32, 64) or group % 128 == 0)

    def arranged(self, inputs: Tensor) -> Tensor:
        from .matvec_kernels import int4_planes

        return int4_planes(inputs)

    def product(self, inputs: Tensor) -> Tensor:
        from .matvec_kernels import int4_matvec

        return int4_matvec(inputs, self.weight.qdata, self.weight.scale_and_zero)

    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        from .matvec_kernels import int4_gated_matvec

        gate, up = self.weight, up_proj.weight
        return int4_gated_matvec(inputs, gate.qdata, gate.scale_and_zero, up.qdata, up.scale_and_zero)


class WeightOnlyGatedFeedForward(GatedFeedForward):
    """A feed-forward layer of such layers, which writes neither gate nor up to memory."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def _transform(self, hidden_states: Tensor) -> Tensor:
        if not _is_one_token(hidden_states):
            return super()._transform(hidden_states)
        inner = self.gate_proj.gated(self.gate_proj.arranged(hidden_states.reshape(-1)), self.up_proj)
        return self.down_proj.product(inner).view(hidden_states.shape)


def weight_only_classes(model: nn.Module) -> dict[nn.Module, type[nn.Module]]:
    """The classes that layers of a model can have in a decoding step, by layer; none without a GPU and Triton."""
    if not runs_ptx(next(model.parameters()).device):
        return {}
    found: dict[nn.Module, type[nn.Module]] = {}
    for module in model.modules():
        for kind in (Int8Linear, Int4Linear):
            if type(module) is nn.Linear and kind.fits(module):
                found[module] = kind
    for module in model.modules():
        if type(module) is GatedFeedForward and _is_one_product(module, found):
            found[module] = WeightOnlyGatedFeedForward
    return found


@contextmanager
def classes_swapped(classes: Mapping[nn.Module, type[nn.Module]]) -> Iterator[None]:
    """The modules as instances of other classes, which have the same attributes."""
    own = {module: type(module) for module in classes}
    try:
        for module, other in classes.items():
            module.__class__ = other
        yield
    finally:
        for module, other in own.items():
            module.__class__ = other


def _is_one_token(hidden_states: Tensor) -> bool:
    return hidden_states.shape[:-1].numel() == 1 and hidden_states.dtype == torch.bfloat16


def _is_one_product(module: GatedFeedForward, classes: Mapping[nn.Module, type[nn.Module]]) -> bool:
    """Whether what gate and up give need not be written to memory: they are of one kind, and nobody looks at them."""
    layers: tuple[Any, ...] = (module.gate_proj, module.up_proj, module.down_proj)
    kinds = {classes.get(layer) for layer in layers}
    if len(kinds) > 1 or None in kinds or module.activation not in ("silu", "swish"):
        return False
    if any(layer.bias is not None or layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return False
    gate, up = (layer.weight for layer in layers[:2])
    return gate.block_size == up.block_size
