"""`from_transformers`: a reference model into ours, weight by weight."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model import modeling_baichuan
from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture, Made, Weights


# Fields that mean the same in every config that has them.
SHARED_FIELDS = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "use_cache",
    "initializer_range",
    "id2label",
    "label2id",
    "problem_type",
    "tokenizer_class",
)


def build_model(reference: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """Our model of the class that `architecture` names, with config and weights of `reference`."""
    settings = shared_settings(reference.config) | architecture.settings(reference)
    model_class = getattr(modeling_baichuan, architecture.classes[type(reference).__name__])
    source = named_weights(reference)
    model = fill(model_class, BaichuanConfig(**settings), architecture.weights, source, reference)
    check_used_up(source, architecture, reference)
    return model


def shared_settings(config: Any) -> dict[str, Any]:
    """What a reference's config says in the names of ours."""
    values = {name: getattr(config, name, None) for name in SHARED_FIELDS}
    # None is a value of its own for these: the model has no such token, or no tokenizer is known.
    nullable = ("pad_token_id", "bos_token_id", "eos_token_id", "tokenizer_class")
    values = {name: value for name, value in values.items() if value is not None or name in nullable}
    return {"normalize_lm_head": False, **values}


class SourceWeights(dict[str, Tensor]):
    """A reference's weights by name, which remember the names that were taken."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights)
        self.taken: set[str] = set()

    def take(self, name: str, target: str) -> Tensor:
        if name not in self or name in self.taken:
            problem = "taken already" if name in self.taken else "missing"
            raise ValueError(f"The weight {name!r} of the reference, from which {target!r} is made, is {problem}.")
        self.taken.add(name)
        return self[name]

    def left(self) -> dict[str, Tensor]:
        """Those that were not taken, under this name or, if they are tied, another."""
        used = {self._memory(self[name]) for name in self.taken}
        return {name: weight for name, weight in self.items() if self._memory(weight) not in used}

    @staticmethod
    def _memory(weight: Tensor) -> tuple[Any, ...]:
        return weight.device, weight.data_ptr(), weight.shape


def named_weights(reference: PreTrainedModel) -> SourceWeights:
    """All weights of a reference model, by their names without the prefix of the base model."""
    prefix = f"{reference.base_model_prefix}."
    source = SourceWeights({name.removeprefix(prefix): value for name, value in reference.state_dict().items()})
    if offloaded := [name for name, value in source.items() if value.is_meta]:
        raise ValueError(f"{offloaded[0]} is not in memory (device 'meta'): load the model without offloading.")
    return source


def fill(
    model_class: type[PreTrainedModel],
    config: BaichuanConfig,
    table: Weights,
    source: SourceWeights,
    reference: PreTrainedModel,
) -> PreTrainedModel:
    """A model of ours with every weight made as `table` says from `source`, the weights of `reference`."""
    with torch.device("meta"):
        skeleton = model_class(config)
    tied = skeleton.all_tied_weights_keys
    weights = {name: _make(name, table, source, config) for name in skeleton.state_dict() if name not in tied}
    return model_class.from_pretrained(None, config=config, state_dict=weights, **where(reference))


def check_used_up(source: SourceWeights, architecture: Architecture, reference: PreTrainedModel) -> None:
    """Raise ValueError for weights of the reference that have no place in ours, but an effect."""
    unused = architecture.unused
    left = [name for name, weight in source.left().items() if name not in unused or not unused[name](weight)]
    if left:
        raise ValueError(
            f"{type(reference).__name__} (model_type {reference.config.model_type!r}) cannot be converted: its weights"
            f" {', '.join(left)} have no place in a Baichuan model."
        )


def finish(model: PreTrainedModel, reference: PreTrainedModel) -> PreTrainedModel:
    """Put `model` where `reference` is: device, mode and how it generates."""
    if model.can_generate() and reference.can_generate():
        model.generation_config = copy.deepcopy(reference.generation_config)
    return model.to(reference.device).train(reference.training)


def where(reference: PreTrainedModel) -> dict[str, Any]:
    """What tells `from_pretrained` to load as `reference` is, without a way through main memory."""
    device = reference.device
    return {"dtype": reference.dtype, **({} if device.type == "cpu" else {"device_map": {"": device}})}


def _make(name: str, table: Weights, source: SourceWeights, config: BaichuanConfig) -> Tensor:
    short = name.removeprefix(f"{modeling_baichuan.BaichuanPreTrainedModel.base_model_prefix}.")
    number = re.search(r"(?<=layers\.)\d+", short)
    pattern = short if number is None else f"{short[: number.start()]}N{short[number.end() :]}"
    module, _, kind = pattern.rpartition(".")
    suffix = "" if pattern in table else f".{kind}"
    entry = table.get(pattern) or table.get(module)
    if entry is None:
        raise ValueError(f"Nothing says what {name!r} is made from.")
    made = entry if isinstance(entry, Made) else Made(_unchanged, (entry,))
    layer = "" if number is None else number.group()
    names = (re.sub(r"\bN\b", layer, part) + suffix for part in made.of)
    weight = made.by(config, *(source.take(part, name) for part in names))
    # Of its own, so that training one model leaves the other as it is.
    return weight.detach().clone(memory_format=torch.contiguous_format)


def _unchanged(config: BaichuanConfig, weight: Tensor) -> Tensor:
    return weight
