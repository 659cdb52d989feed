"""Changing texts while training on them: functions from text to text, applied anew in each epoch."""

import importlib
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from .masking import split_words


Augmentation = Callable[[str], str]


def delete_words(text: str, *, probability: float = 0.1) -> str:
    """Leaves each word out with `probability`, never all of them (random deletion of Wei & Zou 2019)."""
    words = list(split_words()(text))
    dropped = [random.random() < probability for _ in words]
    if all(dropped):
        return text
    kept, end = "", 0
    for (_, after), drop in zip(words, dropped, strict=True):
        kept += "" if drop else text[end:after]
        end = after
    return (kept + text[end:]).lstrip()


def swap_words(text: str, *, share: float = 0.1) -> str:
    """Exchanges two words, as often as `share` of their number, once at least (random swap of Wei & Zou 2019)."""
    spans = list(split_words()(text))
    if len(spans) < 2:
        return text
    words = [text[start:end] for start, end in spans]
    for _ in range(max(1, round(share * len(words)))):
        one, other = random.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
    swapped, end = "", 0
    for word, (start, after) in zip(words, spans, strict=True):
        swapped += text[end:start] + word
        end = after
    return swapped + text[end:]


AUGMENTATIONS: dict[str, Augmentation] = {"delete": delete_words, "swap": swap_words}


def load_augmentation(steps: Sequence[str | Augmentation]) -> Augmentation:
    """One function after another: each given as it is, by its name in `AUGMENTATIONS`, or as `module:function`.

    A module is also looked for in the working directory. Raises ValueError for a name that means none.
    """
    functions = [step if callable(step) else AUGMENTATIONS.get(step) or _import(step) for step in steps]

    def augment(text: str) -> str:
        for function in functions:
            text = function(text)
        return text

    return augment


def _import(name: str) -> Augmentation:
    module_name, separator, function_name = name.partition(":")
    if not (module_name and separator):
        raise ValueError(f"--augment {name!r}: unknown; there is {', '.join(AUGMENTATIONS)}, or module:function")
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--augment {name!r}: {error} (looked in {folder}, too)") from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--augment {name!r}: {module_name} has no function {function_name!r}")
    return function


class AugmentedRows(TorchDataset):
    """Rows whose text is changed and encoded when they are asked for.

    What `random` gives depends on seed, epoch and row alone, so that a resumed run sees what an uninterrupted one
    does; the training loop calls `set_epoch`.

    Args:
        rows: with a column `text`.
        augment: from text to text; draws, if it does, from `random`.
        encode: from a batch of `rows` to a batch of what the collator takes.
        seed: that of the run.
    """

    def __init__(
        self,
        rows: Dataset,
        augment: Augmentation,
        encode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
        *,
        seed: int,
    ) -> None:
        self.rows = rows
        self.augment = augment
        self.encode = encode
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        state = random.getstate()
        random.seed(f"{self.seed} {self.epoch} {index}")
        try:
            text = self.augment(row["text"])
        finally:
            random.setstate(state)
        if not isinstance(text, str):
            raise TypeError(f"an augmentation returned {type(text).__name__}, not str, for {row['text']!r}")
        batch = self.encode({name: [value] for name, value in row.items()} | {"text": [text]})
        return {name: values[0] for name, values in batch.items()}
