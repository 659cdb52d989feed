"""Checkpoint folders into quantised ones."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from ..checkpoints import resolve_model
from ..conversion.folders import check_folders, has_tokenizer, written_anew
from ..conversion.to_llama import normalized_rows
from ..conversion.weight_files import open_weights
from ..evaluation import build_on_meta
from ..model.checkpoint_files import weight_files
from ..model.configuration_baichuan import BaichuanConfig
from .methods import METHODS, quantization_config


# Kept in full precision, but a language model's head with `head=True`: of classifiers it is small, and trained last.
HEADS = ("lm_head", "score", "classifier", "qa_outputs", "pooler")


class Quantized(NamedTuple):
    """What `quantize_folder` has done."""

    model_class: str
    layers: int  # that are quantised
    left: list[str]  # kinds of linear layers that are not, because their shape does not suit the method
    folded: bool  # whether a NormHead became a plain head
    bytes_before: int
    bytes_after: int


def quantize_folder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    method: str,
    group_size: int = 128,
    head: bool = False,
    texts: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Quantized:
    """Quantise the linear layers of a Baichuan folder and save it with its tokenizer, for `from_pretrained` to load.

    Embeddings, norms, heads and experts stay as they are. With `head` the head of a language model is quantised too; a
    NormHead is folded for that: its rows are stored with length 1, which changes no logit but for the rounding.

    Args:
        source: folder, or `tiny`.
        destination: a new or empty folder, or with `overwrite` one that holds a model.
        method: one of `METHODS`.
        group_size: neighbouring inputs that share a scale, where the method has groups.
        head: whether to quantise the language model's head.
        texts: that GPTQ fits the weights to.
        dtype: of what is not quantised; None keeps it.
        device: that it is done on.

    Raises:
        ImportError: the library of the method is missing.
        ValueError: the method is unknown, the machine cannot compute it, no layer suits it, or the folder is quantised
            already.
    """
    folder, destination = Path(resolve_model(str(source))), Path(destination)
    check_folders(folder, destination, overwrite)
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, BaichuanConfig):
        raise ValueError(f"{source}: model_type is {config.model_type!r}, not 'baichuan': convert it first.")
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{source} is quantised already: take the model that it was made from.")
    skeleton = build_on_meta(config)
    if head and not hasattr(skeleton, "lm_head"):
        raise ValueError(f"head=True is for language models; {source} is a {type(skeleton).__name__}.")
    kinds, left = suitable_layers(skeleton, method, group_size)
    if head:
        check_head(skeleton.lm_head, method, group_size)
    tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer(folder) else None
    if METHODS[method].calibrated and (not texts or tokenizer is None):
        raise ValueError(f"method {method!r} fits the weights to texts: it needs some (--text-file), and a tokenizer.")
    if METHODS[method].calibrated and head:
        raise ValueError(f"method {method!r} quantises layers only: leave out --head.")
    dtype = dtype or config.dtype or torch.float32
    settings: dict[str, Any] = {"group_size": group_size, "skip": skipped(left, head=head), "dtype": dtype}
    if METHODS[method].calibrated:
        settings |= {"dataset": texts, "tokenizer": tokenizer, "modules": [[name] for name in kinds]}
    options = {"quantization_config": quantization_config(method, **settings), "dtype": dtype, "device_map": device}
    folded = head and bool(config.normalize_lm_head)
    if folded:
        model = load_folded(folder, type(skeleton), config, **options)
    else:
        model = type(skeleton).from_pretrained(folder, **options)
    if METHODS[method].calibrated:
        model.config.quantization_config.dataset = None  # or the texts would be saved with the model
    with written_anew(destination) as temporary:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    layers = sum(name.endswith(tuple(kinds)) for name, _ in skeleton.base_model.layers.named_modules())
    return Quantized(type(skeleton).__name__, layers + head, left, folded, size_of(folder), size_of(destination))


def skipped(left: Sequence[str], *, head: bool) -> list[str]:
    """What `quantization_config` is to skip: heads (`head`: but a language model's), and these kinds of layers."""
    # A pattern for a name at the end of a path, which all versions of transformers match alike.
    return [name for name in HEADS if not (head and name == "lm_head")] + [rf"(.*\.)?{name}" for name in left]


def multiples_of(method: str, group_size: int) -> tuple[int, int]:
    """What inputs and outputs of a layer must be multiples of."""
    inputs, outputs = METHODS[method].multiples
    return math.lcm(inputs, group_size) if METHODS[method].grouped else inputs, outputs


def check_head(head: nn.Linear, method: str, group_size: int) -> None:
    """Raise ValueError if a method does not suit the shape of a language model's head."""
    inputs, outputs = multiples_of(method, group_size)
    if head.in_features % inputs or head.out_features % outputs:
        rows = math.ceil(head.out_features / outputs) * outputs
        raise ValueError(
            f"method {method!r} needs inputs that are a multiple of {inputs}, and outputs of {outputs}; lm_head has"
            f" {head.in_features} and {head.out_features}: pad the vocabulary first, baichuan-hf convert SRC DST --to"
            f" baichuan --vocab-size {rows}, or leave the head out."
        )


def suitable_layers(model: PreTrainedModel, method: str, group_size: int) -> tuple[list[str], list[str]]:
    """The kinds of linear layers, such as `mlp.up_proj`, whose shape suits a method, and those that it does not.

    Raises:
        ValueError: there is no such method, or it suits none.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: unknown; there are {', '.join(METHODS)}.")
    inputs, outputs = multiples_of(method, group_size)
    shapes: dict[str, tuple[int, int]] = {}
    for layer in model.base_model.layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                shapes[name] = (module.in_features, module.out_features)
    suitable = [name for name, (wide, high) in shapes.items() if wide % inputs == high % outputs == 0]
    if not suitable:
        raise ValueError(
            f"method {method!r} needs layers whose inputs are a multiple of {inputs}, and outputs of {outputs}; here"
            f" {', '.join(f'{name} has {wide} and {high}' for name, (wide, high) in shapes.items())}."
            + (" Give a smaller --group-size." if METHODS[method].grouped else "")
        )
    return suitable, [name for name in shapes if name not in suitable]


def load_folded(
    folder: Path, model_class: type[PreTrainedModel], config: BaichuanConfig, **options: Any
) -> PreTrainedModel:
    """The model of a folder with a plain head in place of its NormHead, whose rows have length 1."""
    weights = {name: weight.read() for name, weight in open_weights(folder).items()}
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    weights["lm_head.weight"] = normalized_rows(weights[head])
    config.normalize_lm_head = config.tie_word_embeddings = False
    model = model_class.from_pretrained(None, config=config, state_dict=weights, **options)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def size_of(folder: Path) -> int:
    """Bytes of the weights that loading a folder reads."""
    return sum(file.stat().st_size for file in weight_files(folder))
