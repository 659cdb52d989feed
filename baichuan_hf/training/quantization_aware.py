"""Quantisation-aware training through torchao: the weights learn to be rounded."""

import importlib.util
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def prepare_quantization(model: PreTrainedModel, *, group_size: int) -> None:
    """Let the linear layers between embeddings and head compute as with weights of 4 bits and inputs of 8, in place.

    The weights themselves stay what they are and are saved so; what is loaded with `quantization_config(group_size)`
    computes what the trained model did. Raises ImportError without torchao, and ValueError for a layer that
    `group_size` does not divide.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ImportError("--qat needs torchao: pip install 'baichuan-hf[torchao]'")
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    base = model.base_model
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % group_size:
            raise ValueError(
                f"--qat-group-size {group_size} does not divide the {module.in_features} inputs of {name}: give 16, or"
                " another divisor"
            )
    quantize_(base, QATConfig(_weights_of_four_bits(group_size), step="prepare"))


def quantization_config(group_size: int) -> Any:
    """What `from_pretrained(folder, quantization_config=...)` takes to load a model trained with --qat in 4 bits."""
    from transformers import TorchAoConfig

    return TorchAoConfig(_weights_of_four_bits(group_size))


def _weights_of_four_bits(group_size: int) -> Any:
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig
    from torchao.quantization.granularity import PerGroup

    four_bits: Any = torch.int4  # type: ignore[attr-defined]  # not in torch's stubs
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=four_bits, weight_granularity=PerGroup(group_size))
