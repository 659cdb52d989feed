"""Ours into Llama, which needs no code of ours: the way back of `llama.py`, for models with rotary positions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from ..model.lm_head import NormHead
from ..model.saving import CONVERSIONS
from .convert import SHARED_FIELDS, finish, where
from .llama import LLAMA
from .weight_files import Weight, weights_of


CLASSES = {ours: llama for llama, ours in LLAMA.classes.items()}
FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rope_parameters", "rms_norm_eps"),
    *("attention_bias", "mlp_bias", "attention_dropout"),
)
# What a Llama is, in the names of our fields.
NEEDED = {
    "norm_type": "rms_norm",
    "norm_position": "pre",
    "norm_bias": False,
    "gated_mlp": True,
    "embedding_norm": False,
    "embedding_multiplier": 1.0,
    "final_norm": True,
    "type_vocab_size": 0,
    "is_causal": True,
    "add_cross_attention": False,
    "add_pooling_layer": False,
    "classifier_pooling": "token",
    "attention_type": "softmax",
    "num_global_tokens": 0,
    "num_local_experts": 0,
    "lm_head_bias": False,
}
# Of no effect but in training, with the value that means none.
ONLY_IN_TRAINING = {"z_loss_weight": 0, "hidden_dropout": 0, "layer_drop": 0}
ROWS_AT_ONCE = 8192


def to_llama(model: PreTrainedModel) -> PreTrainedModel:
    """A Baichuan with rotary positions as a model of transformers' Llama that computes the same.

    The weights are copied: `W_pack` is split into q, k and v, and the rows of a NormHead are stored with length 1.
    Dtype, device, mode and generation config are kept. What counts in training only has no place in a Llama: the rows
    of a folded head no longer stay at length 1, and there is no max-z loss, hidden dropout or layer drop.

    Raises:
        ValueError: the class or a setting has no equal in Llama; the message names it.

    Example:

    ```python
    >>> import baichuan_hf
    >>> from transformers import AutoModelForCausalLM

    >>> config = baichuan_hf.BaichuanConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> type(baichuan_hf.to_llama(AutoModelForCausalLM.from_config(config))).__name__
    'LlamaForCausalLM'
    ```
    """
    skeleton, shared = llama_parts(model, model.state_dict())
    weights = {name: weight.clone() for name, weight in shared.items()}
    llama = type(skeleton).from_pretrained(None, config=skeleton.config, state_dict=weights, **where(model))
    return finish(llama, model)


def llama_parts(model: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A Llama without weights, and those for it, which share memory with `state_dict` where they are the same.

    Raises:
        ValueError: the model cannot become one (see `to_llama`).
    """
    llama_class = getattr(transformers, llama_class_name(type(model).__name__.removeprefix("FSDP")))
    config = llama_config(model.config)
    if getattr(model, "is_quantized", False):
        raise ValueError("The model is quantised, so its weights cannot be copied: call model.dequantize() first.")
    if any(tensor.is_meta for tensor in state_dict.values()):
        raise ValueError("The model is not in memory (device 'meta'): load it without offloading.")
    if model._tp_size is not None:
        raise ValueError("The model is divided among processes: save it as it is, and use `baichuan-hf convert`.")
    if model._hf_peft_config_loaded:
        raise ValueError("The model has adapters: merge them first, or save them and use `baichuan-hf convert`.")
    with torch.device("meta"):
        skeleton = llama_class(config).to(model.dtype)
    if model.can_generate():
        skeleton.generation_config = copy.deepcopy(model.generation_config)
    weights = llama_weights(weights_of(state_dict), model.config, llama_class)
    return skeleton, {name: weight.read() for name, weight in weights.items()}


def register_layout() -> None:
    """Let `save_pretrained` and `push_to_hub` of our models take `layout="llama"`."""
    CONVERSIONS["llama"] = llama_parts


def llama_class_name(name: str) -> str:
    """The class of Llama with the head of one of ours; Baichuan-7B's own files write `BaiChuan`."""
    ours = name.replace("BaiChuan", "Baichuan")
    if ours not in CLASSES:
        raise ValueError(f"{name} has no equal among Llama's classes; these have: {', '.join(CLASSES)}.")
    return CLASSES[ours]


def llama_config(config: BaichuanConfig) -> LlamaConfig:
    """The config of a Llama that computes the same.

    Raises:
        ValueError: there is none.
    """
    if (positions := config.position_embedding_type) != "rope":
        raise ValueError(
            f"position_embedding_type={positions!r} cannot become Llama, which rotates queries and keys and has no"
            " place for other positions (Baichuan-13B and Baichuan2-13B have ALiBi). Keep the Baichuan layout,"
            " which loads with `import baichuan_hf`, or convert with --to gguf for llama.cpp."
        )
    check_components(config, "Llama")
    values = {name: getattr(config, name) for name in (*FIELDS, *SHARED_FIELDS)}
    # A folded head is another matrix than the embeddings.
    values["tie_word_embeddings"] = config.tie_word_embeddings and not config.normalize_lm_head
    return LlamaConfig(**values | {"tokenizer_class": None, "dtype": config.dtype})


def check_components(config: BaichuanConfig, target: str) -> None:
    """Raise ValueError for a setting that is not Llama's either, positions aside; `target` is for the message."""
    for name, value in NEEDED.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(f"{name}={found!r} cannot become {target}, which is {name}={value!r}.")
    if "sliding_attention" in config.layer_types:
        raise ValueError(f"sliding_window={config.sliding_window!r} cannot become {target}, whose layers see all.")


def llama_weights(
    weights: Mapping[str, Weight],
    config: BaichuanConfig,
    llama_class: type[PreTrainedModel],
    *,
    fold_head: bool = True,
) -> dict[str, Weight]:
    """Our weights by the names of Llama's, W_pack split and, with `fold_head`, NormHead folded."""
    prefix = f"{llama_class.base_model_prefix}."
    made = {}
    for ours, weight in weights.items():
        name = prefix + ours.removeprefix("model.") if ours.startswith("model.") else ours
        if ".W_pack." in name:
            for index, part in enumerate("qkv"):
                made[name.replace("W_pack", f"{part}_proj")] = weight.then(partial(third, index=index))
        else:
            made[name] = weight
    if fold_head and config.normalize_lm_head and llama_class is transformers.LlamaForCausalLM:
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        if head in made:
            made["lm_head.weight"] = made[head].then(normalized_rows)
    return made


def lost_in_training(config: BaichuanConfig) -> list[str]:
    """What training the Llama further does otherwise than training ours, in sentences."""
    lost = []
    if config.normalize_lm_head:
        lost.append(
            "NormHead is folded: the rows of lm_head are stored with length 1 and the logits are the same, but their"
            " former lengths are gone, and training further changes lengths, which NormHead ignores."
        )
    settings = [
        f"{name}={getattr(config, name)}" for name, none in ONLY_IN_TRAINING.items() if getattr(config, name) != none
    ]
    if settings:
        lost.append(f"Llama has no {', '.join(settings)}: training further is without.")
    return lost


def third(weight: Tensor, index: int) -> Tensor:
    """The rows of q, k or v in W_pack."""
    return weight.chunk(3)[index]


def normalized_rows(weight: Tensor) -> Tensor:
    """As `NormHead.normalized_weight`, some rows at a time: a float32 copy of a whole head takes 2 GB."""
    normalized = torch.empty_like(weight)
    for rows, target in zip(weight.split(ROWS_AT_ONCE), normalized.split(ROWS_AT_ONCE), strict=True):
        target.copy_(F.normalize(rows.float(), dim=-1, eps=NormHead.EPS))
    return normalized
