"""Models with random weights: Baichuan, and the Llama of the same shape that it is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from ..conversion.to_llama import to_llama
from ..model.configuration_baichuan import BaichuanConfig
from .choices import SHAPES


PEER = "llama"
# What `random_config` needs to be told of each.
KINDS: dict[str, dict[str, bool]] = {PEER: {"llama": True}, "baichuan": {}, "baichuan, ALiBi": {"alibi": True}}
MODELS = tuple(KINDS)
COMPARED = 64  # tokens whose logits are held against the peer's


def random_config(
    sizes: Mapping[str, int], *, length: int, llama: bool = False, alibi: bool = False
) -> PreTrainedConfig:
    """The configuration of a model of those sizes (see `SHAPES`) for texts of so many tokens."""
    if llama:
        return LlamaConfig(**sizes, max_position_embeddings=length)
    positions = "alibi" if alibi else "rope"
    return BaichuanConfig(**sizes, max_position_embeddings=length, position_embedding_type=positions)


def random_model(config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Built where it shall be, so that its weights need no room elsewhere."""
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def inference_dtype(device: torch.device) -> torch.dtype:
    """What is fast there: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_text(vocab_size: int, batch_size: int, tokens: int, device: torch.device) -> Tensor:
    """Ids that are no special token's, the same in every call."""
    torch.manual_seed(0)
    return torch.randint(3, vocab_size, (batch_size, tokens), device=device)


def compared_models(
    shape: str, models: Sequence[str], length: int, device: torch.device
) -> tuple[dict[str, PreTrainedModel], dict[str, str]]:
    """The models of MODELS that are named, and the largest difference of a logit from the peer's in units of the
    logits' spread. Baichuan and the peer have the same weights."""
    dtype = inference_dtype(device)
    sizes, difference = SHAPES[shape], dict.fromkeys(models, "")
    built = {
        name: random_model(random_config(sizes, length=length, **KINDS[name]), dtype=dtype, device=device).eval()
        for name in models
        if name != PEER
    }
    if PEER in models:
        # Not moved afterwards: that would round the frequencies of its rotation.
        built[PEER] = (
            to_llama(built["baichuan"]).eval()
            if "baichuan" in models
            else random_model(random_config(sizes, length=length, **KINDS[PEER]), dtype=dtype, device=device).eval()
        )
    if {PEER, "baichuan"} <= set(models):
        text = random_text(sizes["vocab_size"], 1, min(length, COMPARED), device)
        with torch.no_grad():
            expected = built[PEER](text).logits.float()
            found = built["baichuan"](text).logits.float()
        difference["baichuan"] = f"{((found - expected).abs().max() / expected.std()).item():.1e}"
    return {name: built[name] for name in models}, difference
