"""Says what is wrong with a checkpoint: which file is at fault when loading fails, or what it does not fill."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig


LFS_POINTER_START = b"version https://git-lfs"
# In the order in which transformers looks for them: weights, or an index of shards.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# How names end in the files of Baichuan2-*-Chat-4bits.
QUANT_STATE = ".weight.quant_state"

SAVED_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
LAYER_KEY = re.compile(r"(^|\.)(layers\.\d+\.|embed_tokens\.)")
# The config fields that the shape of a weight follows from.
SIZE_FIELDS = {
    "embed_tokens": "vocab_size or hidden_size",
    "lm_head": "vocab_size or hidden_size",
    "mlp": "intermediate_size or hidden_size",
    "self_attn": "num_attention_heads or num_key_value_heads or head_dim or hidden_size",
    "score": "num_labels",
}


def is_lfs_pointer(path: str | os.PathLike) -> bool:
    """Whether a file is what `git clone` leaves in place of a large file when git-lfs is missing."""
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER_START)) == LFS_POINTER_START


def lfs_pointer_message(path: str | os.PathLike) -> str:
    """What is wrong with a pointer file, and how to get the real one."""
    path = Path(path)
    return (
        f"{path} is a Git LFS pointer, not the file itself. Fetch it: git lfs install &&"
        f" git -C {path.parent} lfs pull --include {path.name}"
    )


@contextmanager
def explain_loading_errors(checkpoint: Any) -> Iterator[None]:
    """When loading a folder fails, look through its files and raise an `OSError` that names the one at fault."""
    try:
        yield
    except Exception as error:
        folder = Path(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
        problem = find_problem(folder) if folder is not None and folder.is_dir() else None
        if problem is None:
            raise
        raise OSError(problem) from error


class WeightShapeError(RuntimeError, ValueError):
    """Weights of other shapes than the config says: a RuntimeError as torch's and transformers', of a wrong value."""


def check_loaded_weights(
    checkpoint: Any,
    config: PreTrainedConfig,
    missing_keys: Iterable[str],
    mismatched_keys: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Refuse a checkpoint that does not fill the layers, which transformers would leave at random with a warning.

    Raises:
        WeightShapeError: weights have other shapes than the config says.
        OSError: weights of the layers are missing.
    """
    mismatched = sorted(mismatched_keys)
    if mismatched:
        key, in_file, in_model = mismatched[0]
        fields = next((fields for part, fields in SIZE_FIELDS.items() if part in key), "hidden_size")
        raise WeightShapeError(
            f"{key} is {tuple(in_file)} in {checkpoint}, but {tuple(in_model)} by its config"
            f" ({len(mismatched)} such weights). Likely cause: {fields} in config.json"
            f" ({', '.join(f'{name}={getattr(config, name)}' for name in fields.split(' or '))}) is not what the"
            " weights were made with. Correct it, or pass ignore_mismatched_sizes=True to start them at random."
        )
    # An encoder or a language model may become the decoder of a pair, whose cross-attention is then trained anew.
    missing = sorted(key for key in missing_keys if LAYER_KEY.search(key) and ".cross_att" not in key)
    if missing and (problem := find_problem(Path(checkpoint))):
        raise OSError(problem)
    if missing:
        raise OSError(
            f"{checkpoint} lacks {len(missing)} weights of the layers, first {missing[0]}: a shard is not in the"
            f" index, the files are incomplete, or num_hidden_layers={config.num_hidden_layers} is too large."
            " Download the checkpoint again."
        )


@contextmanager
def written_beside(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder whose files replace those of `folder` once the block has ended.

    If the block fails (a full disk, say), the files of `folder` stay as they are. Weight files of an earlier save that
    the new ones do not replace are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        yield Path(temporary)
        written = {path.relative_to(temporary) for path in Path(temporary).rglob("*") if path.is_file()}
        for path in sorted(written):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / path, folder / path)
    if any(SAVED_WEIGHTS.fullmatch(path.name) for path in written):
        for path in folder.iterdir():
            if SAVED_WEIGHTS.fullmatch(path.name) and Path(path.name) not in written:
                path.unlink()


def first_weight_file(folder: Path) -> Path | None:
    """The file that loading a folder begins with, one of `WEIGHT_FILES`, or None if there are no weights."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The files that loading a folder reads weights from, none if there are no weights."""
    first = first_weight_file(folder)
    if first is None:
        return []
    return _listed_files(first) if first.suffix == ".json" else [first]


def _listed_files(index: Path) -> list[Path]:
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def find_problem(folder: Path) -> str | None:
    """What is wrong with the weight files of a checkpoint folder, or None."""
    return next(find_problems(folder), None)


def find_problems(folder: Path) -> Iterator[str]:
    """All that is wrong with the weight files of a checkpoint folder; the way out is the last sentence of each."""
    first = first_weight_file(folder)
    if first is None:
        return
    if first.suffix == ".json":
        yield from _find_index_problems(first)
    elif problem := _find_file_problem(first):
        yield problem


def holds_four_bit(folder: Path) -> bool:
    """Whether the weights of a folder are those of Baichuan2-*-Chat-4bits, in four bits with their state in lists."""
    first = first_weight_file(folder)
    if first is None or first.suffix != ".bin":
        return False
    return any(name.endswith(QUANT_STATE) for name in _load_on_meta(first))


def _load_on_meta(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))


def _find_index_problems(index: Path) -> Iterator[str]:
    if is_lfs_pointer(index):
        yield lfs_pointer_message(index)
        return
    try:
        files = _listed_files(index)
    except (ValueError, KeyError) as error:
        yield f"{index} is damaged ({error!r}). Download it again."
        return
    for path in files:
        if not path.is_file():
            yield f"{path} is missing, though {index.name} lists it. Download it again."
        elif problem := _find_file_problem(path):
            yield problem


def _find_file_problem(path: Path) -> str | None:
    if is_lfs_pointer(path):
        return lfs_pointer_message(path)
    size = f"{path} ({path.stat().st_size} bytes)"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        else:
            if any(name.endswith(QUANT_STATE) for name in _load_on_meta(path)):
                return (
                    f"{path} holds weights in four bits as bitsandbytes 0.41 kept them (Baichuan2-*-Chat-4bits), which"
                    f" no newer version loads. Convert the folder: baichuan-hf convert {path.parent} DST --to baichuan"
                )
    except pickle.UnpicklingError as error:
        return (
            f"{size} is damaged, or holds Python objects beside tensors, which could run code and are never loaded:"
            f" {str(error).splitlines()[0]} Get the weights as safetensors from a source you trust."
        )
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        return f"{size} is damaged or cut short: {reason}. Download it again."
    return None
