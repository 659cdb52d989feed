"""Adapters as `baichuan-hf train --lora` saves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from ..checkpoints import resolve_model
from ..model.configuration_baichuan import BaichuanConfig


FOLDER = "base_config"


def save_base_config(base: PreTrainedModel, folder: str | Path) -> None:
    """Keep the config of the adapted model, which names its labels, in a folder of its own beside the adapter.

    In the folder of the adapter itself transformers would take it for that of a whole model.
    """
    config = copy.deepcopy(base.config)
    # The adapter can be put upon the weights as they were before --qlora quantised them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # Trainer turns it off, for the training.
    config.use_cache = True
    config.save_pretrained(Path(folder) / FOLDER)


def load_adapted(folder: str | Path, auto_class: Any, **options: Any) -> Any:
    """The adapter in `folder`, a PeftModel, on the model that it was trained on: its labels, its settings, its head.

    PEFT's own AutoPeftModel classes know of two labels and of no --config-overrides, and transformers before 5.23
    leaves the trained head behind.

    Args:
        folder: the --output-dir of a run with --lora or --qlora.
        auto_class: `AutoModelForSequenceClassification` and the like, that of the task.
        options: for its `from_pretrained`, as `dtype` and `device_map`.

    Raises:
        FileNotFoundError: the adapter was saved by something else, without the config.
    """
    from peft import PeftModel

    if not (Path(folder) / FOLDER / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no {FOLDER}/config.json, which baichuan-hf train --lora saves")
    return PeftModel.from_pretrained(load_base(folder, auto_class, **options), str(folder))


def load_base(folder: str | Path, auto_class: Any, *, base: str | None = None, **options: Any) -> PreTrainedModel:
    """The model under the adapter in `folder`, with the config that was kept beside it, if one was.

    Args:
        base: folder or Hub name of that model; None takes the one that the adapter names.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds a part only of what was adapted, or another model.
    """
    from peft import PeftConfig

    named = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    try:
        name = resolve_model(base or named)
    except FileNotFoundError as error:
        raise FileNotFoundError(error if base else f"{folder} is of {named}, no such folder: give --base.") from error
    if not (Path(folder) / FOLDER / "config.json").is_file():
        return auto_class.from_pretrained(name, **options)
    config, given = (AutoConfig.from_pretrained(path) for path in (Path(folder) / FOLDER, name))
    if given.model_type != config.model_type:
        raise ValueError(
            f"{folder} is an adapter of an {config.model_type} that its training has put together from {name}: only"
            " the training itself can merge it (--merge), or give a saved one as --base."
        )
    # Of the weights, not of the training: that had them in float32, and says nothing of how they are quantised.
    config.dtype = given.dtype
    if getattr(given, "quantization_config", None) is not None:
        config.quantization_config = given.quantization_config
    if not isinstance(config, BaichuanConfig):
        return auto_class.from_pretrained(name, config=config, **options)
    if base is not None:
        # Whether a head is folded is a matter of its weights: a quantised folder may have one that is.
        config.normalize_lm_head = given.normalize_lm_head
    # A token may have been added, whose row is the adapter's.
    size, config.vocab_size = config.vocab_size, given.vocab_size
    try:
        model = auto_class.from_pretrained(name, config=config, **options)
    except RuntimeError as error:
        raise ValueError(f"The adapter {folder} does not go with {name}, it is of another model: {error}") from error
    if size > config.vocab_size:
        model.resize_token_embeddings(size)
    return model
