"""Layers with torchao's weights of 8 and 4 bits: what multiplies one token in a compiled decoding step (`decoding`),
and many with 4 bits, where torchao has nothing fast.

They take the place of the model's as the same objects, of another class: for the time of the step, those of 4 bits
from loading on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import BaichuanAttention
from .feed_forward import GatedFeedForward
from .kernels import runs_ptx
from .layers import BaichuanDecoderLayer
from .normalization import RMSNorm
from .residuals import add_pre


# About as many tokens tinygemm, whose time grows with them, multiplies in the time that it takes to write a weight's
# numbers to memory and read them.
FEW_TOKENS = 32


class WeightOnlyLinear(nn.Linear):
    """A linear layer whose products of one token are a kernel's, in a compiled step. From Python, launching that takes
    longer than torchao does."""

    # In such a step: what is in the weight, as torch.compile takes long to look into torchao's class, and the norm of
    # what comes in.
    parts: tuple[Tensor, ...] = ()
    norm: RMSNorm | None = None

    @staticmethod
    @abstractmethod
    def fits(layer: nn.Linear) -> bool:
        """Whether this class can take the place of the layer's."""

    @staticmethod
    @abstractmethod
    def parts_of(weight: Any) -> tuple[Tensor, ...]:
        """Numbers and scales of a weight of torchao."""

    @abstractmethod
    def product(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(in_features,) -> (out_features,), without the bias; added to `residual`."""

    @abstractmethod
    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        """silu(this product) * that of `up_proj`, in the order of `product_of_gated`."""

    @abstractmethod
    def product_of_gated(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """`product` of what `gated` gives."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.parts or not _is_one_token(hidden_states):
            return super().forward(hidden_states)
        product = self.product(hidden_states.reshape(-1), None if residual is None else residual.reshape(-1))
        product = product.view(*hidden_states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def _norm(self) -> tuple[Tensor | None, float]:
        return (None, 0.0) if self.norm is None else (self.norm.weight, self.norm.eps)


class Int8Linear(WeightOnlyLinear):
    """With `Int8WeightOnlyConfig`: a scale a row."""

    @staticmethod
    def parts_of(weight: Any) -> tuple[Tensor, ...]:
        return weight.qdata, weight.scale

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        weight: Any = layer.weight
        if type(weight).__name__ != "Int8Tensor" or weight.act_quant_kwargs is not None:
            return False
        # torchao looks at no zero point either where a row has one scale.
        one_scale = weight.scale.numel() == layer.out_features and weight.act_pre_scale is None
        whole = layer.in_features % 4 == layer.out_features % 4 == 0
        return one_scale and whole and weight.qdata.is_contiguous()

    def product(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        from .matvec_kernels import int8_matvec

        return int8_matvec(inputs, *self.parts, *self._norm(), residual)

    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        from .matvec_kernels import int8_gated_matvec

        return int8_gated_matvec(inputs, *self.parts, *up_proj.parts, *self._norm())

    def product_of_gated(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.product(inputs, residual)


class Int4Linear(WeightOnlyLinear):
    """With `Int4WeightOnlyConfig` in the format `tile_packed_to_4d`, tinygemm's."""

    @staticmethod
    def parts_of(weight: Any) -> tuple[Tensor, ...]:
        return weight.qdata, weight.scale_and_zero

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        weight: Any = layer.weight
        if type(weight).__name__ != "Int4TilePackedTo4dTensor" or weight.act_pre_scale is not None:
            return False
        group = weight.block_size[-1]
        whole = layer.in_features % 128 == layer.out_features % 16 == weight.qdata.shape[1] % 8 == 0
        return whole and (group in (32, 64) or group % 128 == 0)

    def product(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.product_of_gated(self._planes(inputs), residual)

    def gated(self, inputs: Tensor, up_proj: WeightOnlyLinear) -> Tensor:
        from .matvec_kernels import int4_gated_matvec

        return int4_gated_matvec(self._planes(inputs), *self.parts, *up_proj.parts)

    def product_of_gated(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        from .matvec_kernels import int4_matvec

        return int4_matvec(inputs, *self.parts, residual)

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self._is_by_numbers(hidden_states):
            return super().forward(hidden_states, residual)
        from .matvec_kernels import int4_numbers

        numbers = int4_numbers(*self.parts_of(self.weight), self.in_features)
        return F.linear(hidden_states, numbers, self.bias)

    def _is_by_numbers(self, hidden_states: Tensor) -> bool:
        """Not for learning and compiling, which torchao's weights are made for, and not for a weight put in later."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and hidden_states.requires_grad):
            return False
        if hidden_states.shape[:-1].numel() <= FEW_TOKENS or hidden_states.dtype != torch.bfloat16:
            return False
        return runs_ptx(hidden_states.device) and self.fits(self)

    def _planes(self, inputs: Tensor) -> Tensor:
        from .matvec_kernels import int4_planes

        # torch.compile, to which the size of inputs is a variable, compiles for this one.
        return int4_planes(inputs.view(self.in_features), *self._norm())


class WeightOnlyGatedFeedForward(GatedFeedForward):
    """A feed-forward layer of such layers, which writes neither gate nor up to memory."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def _transform(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        if not _is_one_token(hidden_states):
            return super()._transform(hidden_states)
        inner = self.gate_proj.gated(hidden_states.reshape(-1), self.up_proj)
        residual = None if residual is None else residual.reshape(-1)
        return self.down_proj.product_of_gated(inner, residual).view(hidden_states.shape)


class WeightOnlyAttention(BaichuanAttention):
    """Attention to what is not normalised yet, and added to it."""

    def _output(self, mixed: Tensor, hidden_states: Tensor) -> Tensor:
        return self.o_proj(mixed, hidden_states)


class WeightOnlyDecoderLayer(BaichuanDecoderLayer):
    """A layer whose norms and sums are part of its products."""

    self_attn: Any
    mlp: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, *args, **kwargs)
        return self.mlp._transform(hidden_states, hidden_states)


class Replacement(NamedTuple):
    """What a module is in a decoding step."""

    kind: type[nn.Module]
    attributes: dict[str, Any]


def adopt_int4(model: nn.Module) -> None:
    """Have the layers of a model multiply many tokens with weights of 4 bits so."""
    for module, kind in _fitting(model):
        if kind is Int4Linear:
            module.__class__ = kind


def weight_only_layers(model: nn.Module) -> dict[nn.Module, Replacement]:
    """What the layers of a model can be in the decoding step of one text; none without a GPU and Triton."""
    first = next(model.parameters())
    if first.dtype != torch.bfloat16 or not runs_ptx(first.device):
        return {}
    found: dict[nn.Module, Replacement] = {}
    for linear, kind in _fitting(model):
        found[linear] = Replacement(kind, {"parts": kind.parts_of(linear.weight)})
    for module in model.modules():
        if type(module) is GatedFeedForward and _is_one_product(module, found):
            found[module] = Replacement(WeightOnlyGatedFeedForward, {})
    for module in model.modules():
        if type(module) is BaichuanDecoderLayer and _adds_products(module, found):
            attention: Any = module.self_attn
            gate: Any = module.mlp.gate_proj
            found[module] = Replacement(WeightOnlyDecoderLayer, {})
            found[attention] = Replacement(WeightOnlyAttention, {})
            found[attention.W_pack].attributes["norm"] = module.input_layernorm
            found[gate].attributes["norm"] = module.post_attention_layernorm
    return found


@contextmanager
def replaced(layers: Mapping[nn.Module, Replacement]) -> Iterator[None]:
    """The modules as instances of other classes, which have the same attributes and some more."""
    own = {module: type(module) for module in layers}
    try:
        for module, (kind, attributes) in layers.items():
            module.__class__ = kind
            vars(module).update(attributes)
        yield
    finally:
        for module, kind in own.items():
            module.__class__ = kind
            for name in layers[module].attributes:
                vars(module).pop(name, None)


def _fitting(model: nn.Module) -> Iterator[tuple[nn.Linear, type[WeightOnlyLinear]]]:
    for module in model.modules():
        for kind in (Int8Linear, Int4Linear):
            if isinstance(module, nn.Linear) and type(module) in (nn.Linear, kind) and kind.fits(module):
                yield module, kind


def _is_one_token(hidden_states: Tensor) -> bool:
    return hidden_states.shape[:-1].numel() == 1 and hidden_states.dtype == torch.bfloat16


def _is_one_product(module: GatedFeedForward, found: Mapping[nn.Module, Replacement]) -> bool:
    """Whether what gate and up give need not be written to memory: they are of one kind, and nobody looks at them."""
    layers: tuple[Any, ...] = (module.gate_proj, module.up_proj, module.down_proj)
    kinds = {found[layer].kind if layer in found else None for layer in layers}
    if len(kinds) > 1 or None in kinds or module.activation not in ("silu", "swish"):
        return False
    if any(layer.bias is not None or _is_watched(layer) for layer in layers):
        return False
    gate, up = (layer.weight for layer in layers[:2])
    return gate.block_size == up.block_size


def _adds_products(layer: BaichuanDecoderLayer, found: Mapping[nn.Module, Replacement]) -> bool:
    """Whether norms and sums of the layer can be part of its products."""
    attention: Any = layer.self_attn
    norms: tuple[Any, ...] = (layer.input_layernorm, layer.post_attention_layernorm)
    if type(attention) is not BaichuanAttention or not attention.fused_qkv or layer.mlp not in found:
        return False
    if not {attention.W_pack, attention.o_proj} <= found.keys() or hasattr(layer, "cross_attn"):
        return False
    if layer.training or layer.residual.add is not add_pre or layer.residual_scale != 1.0:
        return False
    if any(type(norm) is not RMSNorm or norm.bias is not None for norm in norms):
        return False
    if any(norm.weight.dtype != torch.bfloat16 for norm in norms):
        return False
    return not any(_is_watched(part) for part in (*norms, attention, attention.W_pack, attention.o_proj, layer.mlp))


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
