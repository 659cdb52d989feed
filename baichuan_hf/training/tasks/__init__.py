"""The tasks of `baichuan-hf train`, by name. A task is a module with a function and, if it needs any, arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..arguments import TrainArguments
from ..checks import check_arguments
from .classify import train_classifier
from .classify_arguments import ClassifyArguments
from .distill import DistillArguments, train_distilled
from .language_model import ChatArguments, LanguageModelArguments, fine_tune_chat, pretrain
from .masked_language_model import MaskedLanguageModelArguments, train_masked_language_model
from .preferences import PreferenceArguments, train_preferences
from .question_answering import QuestionArguments, train_question_answering
from .seq2seq import Seq2SeqArguments, train_seq2seq
from .tag import TagArguments, train_tagger


@dataclass(frozen=True)
class Task:
    """A recipe: from arguments to metrics, those of all_results.json."""

    train: Callable[[Any, Any], dict[str, float]]
    arguments: type[TrainArguments] = TrainArguments
    training_arguments: type[TrainingArguments] = TrainingArguments


TASKS: dict[str, Task] = {
    "classify": Task(train_classifier, ClassifyArguments),
    "distill": Task(train_distilled, DistillArguments),
    "dpo": Task(train_preferences, PreferenceArguments),
    "mlm": Task(train_masked_language_model, MaskedLanguageModelArguments),
    "pretrain": Task(pretrain, LanguageModelArguments),
    "seq2seq": Task(train_seq2seq, Seq2SeqArguments, Seq2SeqTrainingArguments),
    "sft": Task(fine_tune_chat, ChatArguments),
    "tag": Task(train_tagger, TagArguments),
    "qa": Task(train_question_answering, QuestionArguments),
}


def find_task(name: str) -> Task:
    """The task of that name. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"--task {name!r}: unknown; there is {', '.join(TASKS)}")
    return TASKS[name]


def train(arguments: TrainArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Run the recipe of --task and return its metrics.

    Raises ValueError for an unknown task and for arguments that do not go together, ImportError for absent packages.
    """
    task = find_task(arguments.task)
    check_arguments(arguments, training_arguments)
    return task.train(arguments, training_arguments)
