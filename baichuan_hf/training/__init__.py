"""Fine-tuning: thin recipes over `datasets`, `Trainer` and PEFT."""

from ..data.prompts import Prompt
from .arguments import TrainArguments
from .on_ray import train_on_ray
from .parsing import parse_arguments
from .tasks import TASKS, train
from .tasks.classify import train_classifier
from .tasks.classify_arguments import ClassifyArguments
from .tasks.distill import DistillArguments, train_distilled
from .tasks.few_shot import predict_labels, score_labels
from .tasks.language_model import ChatArguments, LanguageModelArguments, fine_tune_chat, pretrain
from .tasks.masked_language_model import MaskedLanguageModelArguments, train_masked_language_model
from .tasks.preferences import PreferenceArguments, train_preferences
from .tasks.question_answering import QuestionArguments, predict_answers, train_question_answering
from .tasks.seq2seq import Seq2SeqArguments, predict_targets, train_seq2seq
from .tasks.tag import TagArguments, predict_tags, train_tagger


__all__ = [
    "TASKS",
    "ChatArguments",
    "ClassifyArguments",
    "DistillArguments",
    "LanguageModelArguments",
    "MaskedLanguageModelArguments",
    "PreferenceArguments",
    "Prompt",
    "QuestionArguments",
    "Seq2SeqArguments",
    "TagArguments",
    "TrainArguments",
    "fine_tune_chat",
    "parse_arguments",
    "predict_answers",
    "predict_labels",
    "predict_tags",
    "predict_targets",
    "pretrain",
    "score_labels",
    "train",
    "train_classifier",
    "train_distilled",
    "train_masked_language_model",
    "train_on_ray",
    "train_preferences",
    "train_question_answering",
    "train_seq2seq",
    "train_tagger",
]
