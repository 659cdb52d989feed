"""Checkpoint folders of reference architectures into folders of ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..model.chat_templates import USER_TOKEN_ID, chat_generation
from ..model.checkpoint_files import written_beside
from ..model.tokenization_baichuan import BaichuanTokenizer
from . import architecture_of, from_transformers
from .architecture import check_class
from .weight_files import MAX_SHARD_SIZE


TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.spm", "spiece.model")
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"


class Conversion(NamedTuple):
    """What `convert_folder` has done."""

    reference: str  # class that was read
    model: PreTrainedModel
    copied: list[str]  # what else is in the new folder
    left_out: list[str]  # weights in the files that are no part of the class


def convert_folder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint folder by `from_transformers`, in its dtype, with its tokenizer or image processor.

    `destination` is written when all has gone well; `source` is only read. Code in it is not run.

    Args:
        source: a folder with a config and weights; the class is the one that its config names.
        destination: a new or empty folder, or with `overwrite` one that holds a model.
        dtype: of the weights; None keeps it.
        max_shard_size: of a file, in bytes or as "5GB".
        overwrite: whether to replace that model.

    Raises:
        ValueError: `destination` holds a model, or the model cannot be converted (see `from_transformers`).
        OSError: `source` is no checkpoint folder, or lacks weights.
    """
    source, destination = Path(source), Path(destination)
    check_folders(source, destination, overwrite)
    reference, left_out = _load(source)
    model = from_transformers(reference)
    if dtype is not None:
        model.to(dtype)
    with written_anew(destination) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        copied = copy_processors(source, folder)
    return Conversion(type(reference).__name__, model, copied, left_out)


def check_source(source: Path) -> None:
    """Raise FileNotFoundError unless `source` is a checkpoint folder."""
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} is no checkpoint folder, it has no config.json. To convert a model of the Hub, download it"
            f" first: hf download {source} --local-dir FOLDER"
        )


def check_folders(source: Path, destination: Path, overwrite: bool) -> None:
    """Raise an error unless `source` can be read and `destination` may be written."""
    check_source(source)
    check_destination(source, destination, overwrite)


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Raise ValueError if `destination` is the source, or without `overwrite` if it holds a model."""
    if source.resolve() == destination.resolve():
        raise ValueError(f"{destination} is the source itself, which is never changed: name another folder.")
    if (destination / "config.json").exists() and not overwrite:
        raise ValueError(f"{destination} holds a model already: name another folder, or pass --overwrite.")


@contextmanager
def written_anew(destination: Path, name: str = "*") -> Iterator[Path]:
    """`written_beside`, once what a killed conversion has left of files called `name` is out of the way.

    For commands, which alone write there.
    """
    for left in destination.glob(f".saving-*/{name}"):
        shutil.rmtree(left.parent, ignore_errors=True)
    with written_beside(destination) as folder:
        yield folder


def _load(source: Path) -> tuple[PreTrainedModel, list[str]]:
    """The model of a folder, and the names of weights in its files that it has no place for."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    classes = architecture_of(config.model_type).classes
    # Some published configs name no class; the first of ours is the one that such a checkpoint is published for.
    name = (config.architectures or list(classes))[0]
    check_class(name, config.model_type, classes)
    model, info = getattr(transformers, name).from_pretrained(source, dtype="auto", output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise OSError(
            f"{source} lacks {len(missing)} weights of {name}, first {missing[0]}: the files are incomplete, or its"
            " config names the wrong class under 'architectures'."
        )
    return model, sorted(info["unexpected_keys"])


def has_tokenizer(folder: Path) -> bool:
    """Whether one of its files is there."""
    return any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))


def copy_processors(source: Path, folder: Path, *, portable: bool = False) -> list[str]:
    """Copy tokenizer and image processor, so that they are found without the `model_type` that they belong to.

    Args:
        portable: whether AutoTokenizer must load it without this package; `tokenizer.model` is kept beside it.
    """
    copied = []
    if has_tokenizer(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if chat_generation(tokenizer.convert_ids_to_tokens(USER_TOKEN_ID)) is not None:
            tokenizer = BaichuanTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(folder)
        if portable:
            config = json.loads((folder / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            _write_json(folder / TOKENIZER_CONFIG_FILE, config)
        copied.append("tokenizer")
    if (source / IMAGE_PROCESSOR_FILE).is_file():
        settings = json.loads((source / IMAGE_PROCESSOR_FILE).read_text(encoding="utf-8"))
        settings.setdefault("image_processor_type", "ViTImageProcessor")
        _write_json(folder / IMAGE_PROCESSOR_FILE, settings)
        copied.append("image processor")
    return copied


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
