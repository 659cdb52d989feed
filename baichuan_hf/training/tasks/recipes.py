"""What every way to classify texts has in common: encoding rows, and a trainer for them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainingArguments

from ...checkpoints import resolve_model
from ...data.augmentation import Augmentation, AugmentedRows
from ...model.configuration_baichuan import BaichuanConfig, list_presets
from ..arguments import TrainArguments


logger = logging.getLogger(__name__)

Batch = dict[str, list[Any]]


@dataclass(frozen=True)
class Recipe:
    """A way to classify texts.

    Args:
        max_length: longer texts are cut to this many tokens.
        encode: from a batch with `text` and maybe `label` to what the collator takes, and `cut`, whether a text was.
        build: a trainer with a fresh model, for rows to train on and rows to evaluate on.
        load: the model alone, as `train_and_save` takes it.
    """

    max_length: int
    encode: Callable[[Batch], Batch]
    build: Callable[[Dataset | TorchDataset, Dataset | None, TrainingArguments], Trainer]
    load: Callable[[TrainArguments], PreTrainedModel]
    pipeline_tag: str

    def encode_rows(self, rows: Dataset, source: str) -> Dataset:
        """`rows` for the collator; says how many texts were cut."""
        encoded = rows.map(self.encode, batched=True, remove_columns=rows.column_names, desc="Tokenizing")
        if cut := sum(encoded["cut"]):
            logger.warning(
                "%s: %d of %d texts are cut to %d tokens, --max-length or the most that the model takes",
                source,
                cut,
                len(rows),
                self.max_length,
            )
        return encoded.remove_columns("cut")

    def training_rows(self, rows: Dataset, source: str, augment: Augmentation | None, seed: int) -> Any:
        """`encode_rows`, or with `augment` rows that are changed and encoded when they are asked for."""
        encoded = self.encode_rows(rows, source)
        return AugmentedRows(rows, augment, self.encode, seed=seed) if augment else encoded


def longest_input(arguments: TrainArguments) -> int:
    """--max-length, or the positions that the model has if they are fewer."""
    if arguments.from_scratch and arguments.model in list_presets():
        config = BaichuanConfig.from_preset(arguments.model, **arguments.config_values())
    else:
        config = AutoConfig.from_pretrained(resolve_model(arguments.model), **arguments.config_values())
    return min(arguments.max_length, getattr(config, "max_position_embeddings", None) or arguments.max_length)
