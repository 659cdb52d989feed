"""Fine-tuning: thin recipes over `datasets`, `Trainer` and PEFT."""

from .arguments import TrainArguments
from .classify import train_classifier
from .parsing import parse_arguments
from .tasks import TASKS, train


__all__ = ["TASKS", "TrainArguments", "parse_arguments", "train", "train_classifier"]
