"""The tasks of `baichuan-hf train`, by name."""

from collections.abc import Callable

from transformers import TrainingArguments

from .arguments import TrainArguments
from .classify import train_classifier


TASKS: dict[str, Callable[[TrainArguments, TrainingArguments], dict[str, float]]] = {"classify": train_classifier}


def train(arguments: TrainArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Run the recipe of --task and return its metrics. Raises ValueError for an unknown task."""
    if arguments.task not in TASKS:
        raise ValueError(f"--task {arguments.task!r}: unknown; there is {', '.join(TASKS)}")
    return TASKS[arguments.task](arguments, training_arguments)
