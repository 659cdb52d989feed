"""Liger's fused Triton kernels in Baichuan models, for CUDA devices (Hsu et al. 2024).

`Trainer` uses them with `use_liger_kernel=True`, as `baichuan-hf train --use-liger-kernel true` does. The max-z term
of Baichuan2 is unknown to Liger: with it the loss stays ours, which never holds the logits either.
"""

from collections.abc import Callable
from types import MethodType

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model import attention
from ..model.feed_forward import GatedFeedForward
from ..model.normalization import RMSNorm


plain_rotation = attention.rotate


def apply_liger_kernel_to_baichuan(
    model: PreTrainedModel,
    rope: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    fused_linear_cross_entropy: bool = True,
) -> None:
    """Let the modules of `model` compute by Liger's kernels; the arguments have the names of Liger's own functions.

    Args:
        model: patched in place; components that Liger has no kernel for stay as they are.
        rope: rotate queries and keys, of every Baichuan model on a CUDA device.
        rms_norm: RMSNorm without a bias.
        swiglu: gated feed-forward layers with silu.
        fused_linear_cross_entropy: a language model's loss without its logits (`model.skip_logits`), in one kernel.
    """
    for module in model.modules():
        if rms_norm and isinstance(module, RMSNorm) and module.bias is None:
            _replace_forward(module, _rms_norm)
        elif swiglu and isinstance(module, GatedFeedForward) and model.config.hidden_act in ("silu", "swish"):
            _replace_forward(module, _swiglu)
    if rope:
        attention.rotate = _rotate
    if fused_linear_cross_entropy and hasattr(model, "skip_logits"):
        model.skip_logits, model.fused_loss = True, _linear_cross_entropy


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = MethodType(forward, module)


def _rms_norm(self: RMSNorm, hidden_states: Tensor) -> Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    # "llama": statistics in float32, then the product with the weight in the input's dtype, as in ours.
    return LigerRMSNormFunction.apply(hidden_states, self.weight, self.eps, 0.0, "llama", False)


def _swiglu(self: GatedFeedForward, hidden_states: Tensor) -> Tensor:
    from liger_kernel.ops import LigerSiLUMulFunction

    return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states)))


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if not states.is_cuda:
        return plain_rotation(states, cos, sin)
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    # It reads the first half of the sine only, whose sign is not turned. It takes queries and keys, which here are
    # one: what it gets for the keys is a copy of one head, as it writes to what it gets.
    return liger_rotary_pos_emb(states, states[:, :1].clone(), cos, sin)[0]


def _linear_cross_entropy(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float
) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", label_smoothing=label_smoothing)
    return loss(weight, states, targets, bias)
