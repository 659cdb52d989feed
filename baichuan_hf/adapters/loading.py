"""Adapters as `baichuan-hf train --lora` saves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel


FOLDER = "base_config"


def save_base_config(base: PreTrainedModel, folder: str | Path) -> None:
    """Keep the config of the adapted model, which names its labels, in a folder of its own beside the adapter.

    In the folder of the adapter itself transformers would take it for that of a whole model.
    """
    config = copy.deepcopy(base.config)
    # The adapter can be put upon the weights as they were before --qlora quantised them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
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
    from peft import PeftConfig, PeftModel

    if not (Path(folder) / FOLDER / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no {FOLDER}/config.json, which baichuan-hf train --lora saves")
    config = AutoConfig.from_pretrained(Path(folder) / FOLDER)
    name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    # A token may have been added, whose row is the adapter's.
    size, config.vocab_size = config.vocab_size, AutoConfig.from_pretrained(name).vocab_size
    model = auto_class.from_pretrained(name, config=config, **options)
    if size > config.vocab_size:
        model.resize_token_embeddings(size)
    return PeftModel.from_pretrained(model, str(folder))
