"""Adapter folders into model folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import AutoTokenizer

from ..conversion.folders import check_destination, has_tokenizer, written_anew
from ..conversion.lora import ADAPTER_CONFIG, is_adapter
from ..conversion.merging import merge_adapter
from ..conversion.weight_files import MAX_SHARD_SIZE, check_room
from ..hub.folder_card import AUTO_OF_ADAPTER
from ..model.modeling_baichuan import BaichuanPreTrainedModel
from ..model.saving import Layout, save_layout
from .loading import load_base


class Merged(NamedTuple):
    """What `merge_folder` has done."""

    kind: str  # of the adapter, as PEFT calls it
    base: str
    model_class: str
    parameters: int
    dtype: torch.dtype


def merge_folder(
    adapter: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    layout: Layout = "baichuan",
    max_shard_size: int | str = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> Merged:
    """Save the model of an adapter with the adapter in its weights, and its tokenizer; the whole model is in memory.

    The class is that of the adapter's task; labels, settings and added tokens are those that `baichuan-hf train` has
    kept beside it.

    Args:
        adapter: a folder that PEFT has saved.
        destination: a new or empty folder, or with `overwrite` one that holds a model.
        base: folder or Hub name of the model; None takes the one that the adapter names.
        dtype: of the weights; None keeps that of the base model.
        layout: see `baichuan_hf.save_layout`.
        max_shard_size: of a file, in bytes or as "5GB".
        overwrite: whether to replace a model in `destination`.

    Raises:
        ValueError: `destination` holds a model, or adapter and model cannot become one (see `merge_adapter`).
        OSError: `adapter` is no adapter, the base model is not found, or the disk is too small.
    """
    source, destination = Path(adapter), Path(destination)
    if not is_adapter(source):
        raise FileNotFoundError(
            f"{adapter} is no adapter, it has no {ADAPTER_CONFIG}. To merge one of the Hub, download it first:"
            f" hf download {adapter} --local-dir FOLDER"
        )
    check_destination(source, destination, overwrite)
    settings = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    auto_class = getattr(transformers, AUTO_OF_ADAPTER.get(settings.get("task_type"), "AutoModelForCausalLM"))
    model = load_base(source, auto_class, base=base, dtype="auto" if dtype is None else dtype)
    name = model.name_or_path
    if layout != "baichuan" and not isinstance(model, BaichuanPreTrainedModel):
        raise ValueError(f"--layout {layout} is not for {type(model).__name__}, a class of transformers.")
    merged = merge_adapter(model, source)
    tokenizer = source if has_tokenizer(source) else Path(name)
    with written_anew(destination) as folder, save_layout(layout):
        check_room(folder, sum(weight.nbytes for weight in merged.parameters()))
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        if has_tokenizer(tokenizer) or not tokenizer.is_dir():
            AutoTokenizer.from_pretrained(str(tokenizer), trust_remote_code=False).save_pretrained(folder)
    written = json.loads((destination / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    return Merged(settings["peft_type"], name, written, merged.num_parameters(), merged.dtype)
