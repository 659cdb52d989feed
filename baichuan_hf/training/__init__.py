"""Fine-tuning: thin recipes over `datasets`, `Trainer` and PEFT."""

from .arguments import TrainArguments
from .classify import train_classifier
from .parsing import parse_arguments
from .question_answering import QuestionArguments, predict_answers, train_question_answering
from .seq2seq import Seq2SeqArguments, predict_targets, train_seq2seq
from .tag import TagArguments, predict_tags, train_tagger
from .tasks import TASKS, train


__all__ = [
    "TASKS",
    "QuestionArguments",
    "Seq2SeqArguments",
    "TagArguments",
    "TrainArguments",
    "parse_arguments",
    "predict_answers",
    "predict_tags",
    "predict_targets",
    "train",
    "train_classifier",
    "train_question_answering",
    "train_seq2seq",
    "train_tagger",
]
