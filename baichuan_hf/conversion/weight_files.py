"""Weights of a checkpoint folder that are read when they are needed, and written shard by shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging

from ..model.checkpoint_files import WEIGHT_FILES, explain_loading_errors, weight_files
from .four_bit import join_four_bit
from .weight import Weight


MAX_SHARD_SIZE = "5GB"


def stacked(parts: Sequence[Weight]) -> Weight:
    """Weights one below the other."""
    return Weight(torch.cat([part.meta for part in parts]), lambda: torch.cat([part.read() for part in parts]))


def weights_of(state_dict: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Those of a model in memory."""
    return {name: Weight(tensor.to("meta"), partial(tensor.detach)) for name, tensor in state_dict.items()}


def open_weights(folder: Path) -> dict[str, Weight]:
    """The weights of a checkpoint folder by name; `.bin` files are read without running what they hold.

    Raises:
        OSError: there are no weights, or a file is damaged or missing.
        ValueError: a file has four-bit weights of a form that nobody knows.
    """
    # Those before version 1.6 of torch cannot be mapped: one such file is kept, and read once.
    load_bin = lru_cache(maxsize=1)(load_state_dict)
    weights: dict[str, Weight] = {}
    if not (files := weight_files(folder)):
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)}.")
    for path in files:
        with explain_loading_errors(folder):
            metas = load_state_dict(path, map_location="meta")
        if path.suffix == ".safetensors":
            weights |= {name: Weight(meta, partial(_read_safetensors, path, name)) for name, meta in metas.items()}
        else:
            weights |= join_four_bit(metas, partial(_read, load_bin, path))
    return weights


def in_dtype(weights: Mapping[str, Weight], dtype: torch.dtype) -> dict[str, Weight]:
    """The same with all floating-point weights in `dtype`."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return {name: weight.then(cast) for name, weight in weights.items()}


def write_weights(weights: Mapping[str, Weight], folder: Path, *, max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
    """Write safetensors as `save_pretrained` does, with one shard in memory at a time.

    Raises:
        OSError: the disk has too little room, seen before anything is written.
    """
    metas = {name: weight.meta for name, weight in weights.items()}
    plan = split_torch_state_dict_into_shards(
        metas, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    needed = sum(meta.numel() * meta.element_size() for meta in metas.values())
    check_room(folder, needed)
    with logging.tqdm(total=needed, desc="Converting", unit="B", unit_scale=True) as progress:
        for file, names in plan.filename_to_tensors.items():
            shard = {}
            for name in names:
                shard[name] = weights[name].read().contiguous()
                progress.update(shard[name].nbytes)
            save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError where `needed` bytes are not free, for files in a temporary `folder` of the destination."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, the weights need {needed / 1e9:.1f} GB.")


def _read_safetensors(path: Path, name: str) -> Tensor:
    # Opened each time: what is mapped is let go with the tensor.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _read(load: Callable[[Path], dict[str, Any]], path: Path, name: str) -> Any:
    entry = load(path)[name]
    return entry.detach() if isinstance(entry, Tensor) else entry  # some files hold parameters
