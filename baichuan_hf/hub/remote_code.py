"""The model code beside weights that are saved already."""

from __future__ import annotations

import json
from pathlib import Path

from ..model.modeling_baichuan import BaichuanPreTrainedModel, auto_map_of
from ..model.saving import add_code
from ..model.tokenization_baichuan import AUTO_MAP, BaichuanTokenizer


def add_remote_code(folder: Path) -> None:
    """Make a saved Baichuan of `folder` one of layout `remote_code`: it loads with `trust_remote_code=True` then.

    Raises:
        ValueError: the model is of another class.
    """
    config, tokenizer_config = folder / "config.json", folder / "tokenizer_config.json"
    (class_name,) = json.loads(config.read_text(encoding="utf-8"))["architectures"]
    add_code(config, BaichuanPreTrainedModel, auto_map_of(class_name))
    if tokenizer_config.is_file():
        tokenizer_class = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("tokenizer_class")
        if tokenizer_class == BaichuanTokenizer.__name__:
            add_code(tokenizer_config, BaichuanTokenizer, AUTO_MAP)
