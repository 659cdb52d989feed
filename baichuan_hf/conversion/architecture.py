"""What a converter is made of: facts about a reference architecture, written down as data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig


class Made(NamedTuple):
    """A weight of ours that is computed: `by(config, *weights)` of the reference's weights named in `of`."""

    by: Callable[..., Tensor]
    of: tuple[str, ...]


# Our names to the reference's, both without the prefix of the base model and, unless it is written, without the
# `.weight` or `.bias` at the end, which is then the same for both. N stands for the number of a layer. An entry that
# a model has no weight for is not used.
Weights = dict[str, str | Made]


@dataclass(frozen=True)
class Architecture:
    """How models of one `model_type` become ours.

    Args:
        classes: the reference's classes by name, and the name of ours for each.
        settings: the reference model to the fields of `BaichuanConfig` that `shared_settings` leaves out.
        weights: where each of our weights comes from.
        allowed: per setting of the reference's config, which may be dotted, the values that have an equal here.
        unused: the reference's weights without a place here, each with a test that it has no effect.
        build: turns a reference model into ours, where that takes more than the above.
    """

    classes: Mapping[str, str]
    settings: Callable[[PreTrainedModel], dict[str, Any]]
    weights: Weights
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unused: Mapping[str, Callable[[Tensor], bool]] = field(default_factory=dict)
    build: Callable[[PreTrainedModel, Architecture], PreTrainedModel] | None = None

    def check(self, reference: PreTrainedModel) -> None:
        """Raise ValueError unless the class and all settings of `reference` have an equal here."""
        check_class(type(reference).__name__, reference.config.model_type, self.classes)
        for name, values in self.allowed.items():
            check_setting(reference.config, name, *values)


def check_class(name: str, model_type: str, allowed: Mapping[str, str]) -> None:
    """Raise ValueError for a class that cannot be converted."""
    if name not in allowed:
        raise ValueError(
            f"{name} (model_type {model_type!r}) cannot be converted. Of this architecture these can:"
            f" {', '.join(allowed)}. Load the checkpoint with one of them, and pass it to"
            " baichuan_hf.from_transformers."
        )


def check_setting(config: PreTrainedConfig, name: str, *allowed: Any) -> None:
    """Raise ValueError unless the setting `name` of a reference's config, if it is there, has one of these values."""
    try:
        value = operator.attrgetter(name)(config)
    except AttributeError:
        return
    if value not in allowed:
        raise ValueError(
            f"model_type {config.model_type!r}: {name}={value!r} cannot be converted, Baichuan models have no equal of"
            f" it; allowed: {', '.join(map(repr, allowed))}."
        )


def check_equal(config: PreTrainedConfig, name: str, other: str) -> None:
    """Raise ValueError unless two settings of a reference's config agree, which are one here."""
    value, other_value = getattr(config, name), getattr(config, other)
    if value != other_value:
        raise ValueError(
            f"model_type {config.model_type!r}: {name}={value!r} and {other}={other_value!r} cannot be converted,"
            f" they are one setting in Baichuan models. Where they do not matter, as dropout without training, set"
            f" model.config.{name} = {other_value!r} first."
        )


def has_pooler(reference: PreTrainedModel) -> bool:
    """Whether the base model pools the first token."""
    return getattr(reference.base_model, "pooler", None) is not None


def never_read(weight: Tensor) -> bool:
    """For a weight that the reference holds, but computes nothing with."""
    return True


def stacked(config: BaichuanConfig, *weights: Tensor) -> Tensor:
    """Queries, keys and values one below the other, as `W_pack` has them."""
    return torch.cat(weights)


def transposed(config: BaichuanConfig, weight: Tensor) -> Tensor:
    """The weight of a Conv1D, (in, out), as that of a linear layer; a bias stays as it is."""
    return weight.t()
