"""Checkpoint folders between Baichuan's layout and Llama's, or of Baichuan with other weights; streamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from ..model import modeling_baichuan
from ..model.configuration_baichuan import BaichuanConfig
from .architecture import check_class
from .convert import shared_settings
from .folders import check_folders, copy_processors, has_tokenizer, written_anew
from .four_bit import FourBitWeight, as_saved_today, config_of
from .llama import LLAMA, baichuan_weights
from .merging import merge_adapter
from .to_llama import llama_class_name, llama_config, llama_weights, lost_in_training
from .weight_files import MAX_SHARD_SIZE, Weight, in_dtype, open_weights, weights_of, write_weights


GENERATION_CONFIG = "generation_config.json"


class Rewritten(NamedTuple):
    """What `convert_baichuan_folder` has done."""

    source_class: str
    written_class: str
    parameters: int
    dtype: torch.dtype
    copied: list[str]  # what else is in the new folder
    left_out: list[str]  # weights in the files that are no part of the class
    lost: list[str]  # what is otherwise than in the source, in sentences


def convert_baichuan_folder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: Literal["baichuan", "llama"],
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    vocab_size: int | None = None,
    adapter: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Rewritten:
    """Write a checkpoint anew as safetensors, with its tokenizer and generation settings; one shard is in memory at
    a time.

    `destination` is written when all has gone well; `source` is only read, and no code in it is run.

    Args:
        source: a folder with a config and weights of any Baichuan; for `baichuan` a Llama too.
        destination: a new or empty folder, or with `overwrite` one that holds a model.
        to: the layout; `llama` is for models with rotary positions (see `to_llama`).
        dtype: of all weights; None keeps those of the files. The four bits of Baichuan2-*-Chat-4bits then become
            files that today's bitsandbytes loads (for `baichuan`); with a dtype, plain weights.
        max_shard_size: of a file, in bytes or as "5GB".
        vocab_size: rows of embeddings and head. New rows are copies of the padding token's, so that none of them is
            ever likelier than a token of the vocabulary.
        adapter: a PEFT adapter of the model, merged into it; the whole model is then in memory.
        overwrite: whether to replace a model in `destination`.

    Raises:
        ValueError: `destination` holds a model, or the model cannot be converted.
        OSError: `source` is no checkpoint folder or lacks weights, or the disk is too small.
    """
    source, destination = Path(source), Path(destination)
    check_folders(source, destination, overwrite)
    config = config_of(source)
    source_class = class_of(config, source, to)
    target_class, target_config, lost = source_class, config, []
    if to == "llama":
        target_class, target_config = (
            getattr(transformers, llama_class_name(source_class.__name__)),
            llama_config(config),
        )
        lost = lost_in_training(config)
    elif not isinstance(config, BaichuanConfig):
        target_class, target_config = baichuan_from_llama(source_class, config)
    weights = weights_to_convert(source, config, source_class, dtype=dtype, vocab_size=vocab_size, adapter=adapter)
    target_config.vocab_size = config.vocab_size
    if to == "llama":
        weights = llama_weights(weights, config, target_class)
    elif target_config is not config:
        prefix = f"{source_class.base_model_prefix}."
        weights = baichuan_weights(weights, prefix=prefix, fused=target_config.fused_qkv)
    weights, left_out = fitting(weights, target_class, target_config, source)

    found = next(iter(weights.values())).meta.dtype
    target_config.dtype, target_config.architectures = found, [target_class.__name__]
    parameters = sum(weight.meta.numel() for weight in weights.values())
    if to == "baichuan" and any(isinstance(weight, FourBitWeight) for weight in weights.values()):
        weights = as_saved_today(weights, target_config)
        lost = [*lost, "The layers stay in four bits, as bitsandbytes saves them now; --dtype writes plain weights."]
    with written_anew(destination) as folder:
        write_weights(weights, folder, max_shard_size=max_shard_size)
        target_config.save_pretrained(folder)
        copied = []
        if (source / GENERATION_CONFIG).is_file():
            shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
            copied.append("generation settings")
        copied += copy_processors(source, folder, portable=to == "llama")
    return Rewritten(source_class.__name__, target_class.__name__, parameters, found, copied, left_out, lost)


def class_of(config: Any, source: Path, to: str) -> type[PreTrainedModel]:
    """The class that a folder holds, ours or Llama's.

    Raises:
        ValueError: it is of neither, a Llama that is to become no Baichuan, or quantised.
    """
    if quantization := getattr(config, "quantization_config", None):
        method = dict(quantization).get("quant_method")
        raise ValueError(f"{source} is quantised ({method}): convert the model that it was made from.")
    if not isinstance(config, BaichuanConfig):
        if config.model_type != "llama" or to != "baichuan":
            raise ValueError(f"{source} has model_type {config.model_type!r}; this is for Baichuan models.")
        name = (config.architectures or ["LlamaForCausalLM"])[0]
        check_class(name, config.model_type, LLAMA.classes)
        return getattr(transformers, name)
    # Some published configs name no class, and Baichuan-7B's own spells it otherwise.
    name = (config.architectures or ["BaichuanForCausalLM"])[0].replace("BaiChuan", "Baichuan")
    if not hasattr(modeling_baichuan, name):
        raise ValueError(f"{source}: its config names {name!r} under 'architectures', which is no Baichuan class.")
    return getattr(modeling_baichuan, name)


def weights_to_convert(
    source: Path,
    config: Any,
    model_class: type[PreTrainedModel],
    *,
    dtype: torch.dtype | None,
    vocab_size: int | None,
    adapter: str | os.PathLike | None,
) -> dict[str, Weight]:
    """The weights of a folder with the changes that were asked for; `config` gets the new `vocab_size`."""
    if vocab_size is not None:
        check_vocab_size(source, config, vocab_size)
    if adapter is None:
        weights = open_weights(source)
    else:
        weights = weights_of(merge_adapter(model_class.from_pretrained(source, dtype="auto"), adapter).state_dict())
    if dtype is not None:
        # First: the model in that dtype is what is converted.
        weights = in_dtype(weights, dtype)
    if vocab_size is not None:
        weights = resized(weights, vocab_size, padding=config.pad_token_id or 0)
        config.vocab_size = vocab_size
    return weights


def baichuan_from_llama(
    llama_class: type[PreTrainedModel], config: Any
) -> tuple[type[PreTrainedModel], BaichuanConfig]:
    """Our class and config for those of a Llama."""
    with torch.device("meta"):
        skeleton = llama_class(config)
    settings = shared_settings(config) | LLAMA.settings(skeleton)
    return getattr(modeling_baichuan, LLAMA.classes[llama_class.__name__]), BaichuanConfig(**settings)


def check_vocab_size(source: Path, config: Any, vocab_size: int) -> None:
    """Raise ValueError where the tokenizer or the config uses ids that `vocab_size` rows have no place for."""
    needed = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if has_tokenizer(source):
        needed["the tokenizer"] = len(AutoTokenizer.from_pretrained(source, trust_remote_code=False)) - 1
    for name, ids in needed.items():
        largest = max(ids) if isinstance(ids, list) else ids
        if largest is not None and largest >= vocab_size:
            raise ValueError(
                f"--vocab-size is {vocab_size}, but {name} has the id {largest}: give at least {largest + 1}."
            )


def resized(weights: Mapping[str, Weight], vocab_size: int, *, padding: int) -> dict[str, Weight]:
    """Embeddings and head with so many rows: cut, or filled up with copies of row `padding`."""

    def resize(weight: Tensor, rows: int) -> Tensor:
        missing = rows - len(weight)
        if missing <= 0:
            return weight[:rows]
        return torch.cat([weight, weight[padding].expand(missing, -1)])

    names = ("embed_tokens.weight", "lm_head.weight")
    function = partial(resize, rows=vocab_size)
    return {name: weight.then(function) if name.endswith(names) else weight for name, weight in weights.items()}


def fitting(
    weights: Mapping[str, Weight], model_class: type[PreTrainedModel], config: Any, source: Path
) -> tuple[dict[str, Weight], list[str]]:
    """The weights that `model_class` has, and the names of the others.

    Raises:
        OSError: one is missing.
        ValueError: one has another shape.
    """
    with torch.device("meta"):
        skeleton = model_class(config)
    expected = skeleton.state_dict()
    tied = skeleton.all_tied_weights_keys
    if missing := [name for name in expected if name not in weights and name not in tied]:
        raise OSError(f"{source} lacks {len(missing)} weights of {model_class.__name__}, first {missing[0]}.")
    kept = {name: weights[name] for name in weights if name in expected and name not in tied}
    for name, weight in kept.items():
        if weight.meta.shape != expected[name].shape:
            way_out = f" Give --vocab-size {len(weight.meta)}." if "embed_tokens" in name or "lm_head" in name else ""
            raise ValueError(
                f"{source}: {name} is {tuple(weight.meta.shape)} in the files, but {tuple(expected[name].shape)} by"
                f" config.json.{way_out}"
            )
    # A buffer that Baichuan-7B's files hold is computed now.
    left = [name for name in weights if name not in kept and not name.endswith("rotary_emb.inv_freq")]
    return kept, [name for name in left if name not in tied]
