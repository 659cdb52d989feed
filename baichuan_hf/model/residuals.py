"""Where norms stand around a sublayer and its residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from .configuration_baichuan import BaichuanConfig


class Residual(NamedTuple):
    """One value of `config.norm_position`."""

    norm_before: bool  # the sublayer's input is normalised
    norm_after: bool  # `add` uses a norm
    add: Callable[[Tensor, Tensor, nn.Module], Tensor]  # (residual, the sublayer's output, norm) -> their sum


def add_pre(residual: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
    """x + f(norm(x)), stable when deep (Xiong et al. 2020)."""
    return residual + output


def add_post(residual: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
    """norm(x + f(x)), the original (Vaswani et al. 2017)."""
    return norm(residual + output)


def add_sandwich(residual: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
    """x + norm(f(norm(x))) (CogView, Ding et al. 2021)."""
    return residual + norm(output)


RESIDUALS: dict[str, Residual] = {
    "pre": Residual(norm_before=True, norm_after=False, add=add_pre),
    "post": Residual(norm_before=False, norm_after=True, add=add_post),
    "sandwich": Residual(norm_before=True, norm_after=True, add=add_sandwich),
}


def build_residual(config: BaichuanConfig) -> Residual:
    """The residual that `config.norm_position` names."""
    return RESIDUALS[config.norm_position]
