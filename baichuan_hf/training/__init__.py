"""Fine-tuning: thin recipes over `datasets`, `Trainer` and PEFT."""

from ..data.prompts import Prompt
from .arguments import TrainArguments
from .classify import train_classifier
from .classify_arguments import ClassifyArguments
from .distill import DistillArguments, train_distilled
from .few_shot import predict_labels, score_labels
from .language_model import ChatArguments, LanguageModelArguments, fine_tune_chat, pretrain
from .masked_language_model import MaskedLanguageModelArguments, train_masked_language_model
from .on_ray import train_on_ray
from .parsing import parse_arguments
from .preferences import PreferenceArguments, train_preferences
from .question_answering import QuestionArguments, predict_answers, train_question_answering
from .seq2seq import Seq2SeqArguments, predict_targets, train_seq2seq
from .tag import TagArguments, predict_tags, train_tagger
from .tasks import TASKS, train


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
