"""What vLLM's Llama can compute of a Baichuan, and what it needs in another form."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..conversion.to_llama import NEEDED, normalized_rows
from ..model.configuration_baichuan import BaichuanConfig
from ..model.position_biases import AlibiBias


POSITIONS = ("rope", "alibi", "none")
# Of the others, "dynamic" is computed for one length, whatever the text's.
ROPE_TYPES = ("default", "linear", "yarn", "llama3")


def check_servable(config: BaichuanConfig) -> None:
    """
    Raises:
        ValueError: vLLM would compute something else; the message names the field.
    """
    needed = NEEDED | {"hidden_act": "silu"}
    if config.normalize_lm_head:
        needed["tie_word_embeddings"] = False
    for name, value in needed.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(f"{name}={found!r} cannot be served by vLLM, only {name}={value!r}: use transformers.")
    if (found := config.position_embedding_type) not in POSITIONS:
        raise ValueError(f"position_embedding_type={found!r} cannot be served by vLLM, only {', '.join(POSITIONS)}.")
    if (found := (config.rope_parameters or {}).get("rope_type", "default")) not in ROPE_TYPES:
        raise ValueError(
            f"rope_parameters['rope_type']={found!r} cannot be served by vLLM as here, only {', '.join(ROPE_TYPES)}."
        )
    if (config.alibi_scaling or {}).get("alibi_type") == "dynamic":
        raise ValueError(
            "alibi_scaling['alibi_type']='dynamic' cannot be served by vLLM, whose slopes do not follow the length:"
            " use 'ntk' or 'linear' with a factor."
        )


def alibi_slopes(config: BaichuanConfig) -> list[float]:
    """What each head's scores lose per token of distance, `alibi_scaling` included."""
    return AlibiBias(config).scores(torch.tensor([1]), torch.tensor([0])).neg().flatten().tolist()


def fold_head(weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """The same weights with a NormHead as a plain head whose rows have length 1.

    Raises:
        ValueError: the head is quantised.
    """
    for name, weight in weights:
        if name.startswith("lm_head."):
            if name != "lm_head.weight" or not weight.is_floating_point():
                raise ValueError(
                    f"{name} ({weight.dtype}): the head is quantised, and so are the lengths of its rows, by which"
                    " NormHead divides. Leave it out, or have it folded: baichuan-hf quantize SRC DST --head."
                )
            weight = normalized_rows(weight)
        yield name, weight
