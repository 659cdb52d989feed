"""Pseudo-labels (Lee 2013): what a first model is sure of teaches a second one."""

import copy
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import TrainingArguments

from ...data.augmentation import Augmentation
from ..watch import watch_loss
from .classify_arguments import MULTI, REGRESSION, ClassifyArguments
from .labelled_texts import label_names, load_unlabelled_texts, problem_type
from .recipes import Recipe


logger = logging.getLogger(__name__)

FILE_NAME = "pseudo_labels.jsonl"


def add_pseudo_labels(
    rows: DatasetDict,
    test_rows: Dataset | None,
    recipe: Recipe,
    arguments: ClassifyArguments,
    training_arguments: TrainingArguments,
    augment: Augmentation | None,
) -> Dataset:
    """The training rows, and behind them those of --unlabeled-file that a model trained on the former is sure of.

    The checkpoints of that model, which is evaluated on `test_rows` if at all, go to OUTPUT_DIR/teacher; what it
    labelled goes to OUTPUT_DIR/pseudo_labels.jsonl, where a resumed run reads it. Reports how many there are of each
    label. Raises ValueError for regression, which gives no probability.
    """
    train_rows = rows["train"]
    if problem_type(train_rows) == REGRESSION:
        raise ValueError("--unlabeled-file needs labels with a probability, which regression does not give")
    file = Path(str(training_arguments.output_dir)) / FILE_NAME
    resumed = str(training_arguments.resume_from_checkpoint or "false").lower() != "false"
    if resumed and file.is_file():
        taken = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    else:
        texts = load_unlabelled_texts(arguments, rows)
        encoded = recipe.training_rows(train_rows, arguments.train_file, augment, training_arguments.seed)
        teacher = recipe.build(encoded, test_rows, _teacher_arguments(training_arguments))
        watch_loss(teacher)
        teacher.train()
        logits = teacher.predict(recipe.encode_rows(texts, str(arguments.unlabeled_file))).predictions
        taken = _sure_labels(texts["text"][:], logits, train_rows, arguments)
        if training_arguments.process_index == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in taken]
            file.write_text("".join(lines), encoding="utf-8")
    if not taken:
        return train_rows
    columns = {name: [row[name] for row in taken] for name in ("text", "label")}
    return concatenate_datasets([train_rows, Dataset.from_dict(columns, features=train_rows.features)])


def _teacher_arguments(training_arguments: TrainingArguments) -> TrainingArguments:
    arguments = copy.copy(training_arguments)
    arguments.output_dir = str(Path(str(training_arguments.output_dir)) / "teacher")
    arguments.push_to_hub = False
    return arguments


def _sure_labels(
    texts: Sequence[str], logits: np.ndarray, train_rows: Dataset, arguments: ClassifyArguments
) -> list[dict[str, Any]]:
    """`text`, `label` (a name, or a list of them) and `probability` of the texts that reach the threshold.

    With several labels the probability is that of the least certain decision for or against one.
    """
    names = np.array(label_names(train_rows))
    if problem_type(train_rows) == MULTI:
        probabilities = 1 / (1 + np.exp(-np.abs(logits).min(-1)))
        labels = [names[given].tolist() for given in logits > 0]
    else:
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponents.max(-1) / exponents.sum(-1)
        labels = names[logits.argmax(-1)].tolist()
    taken = [
        {"text": text, "label": label, "probability": round(float(probability), 4)}
        for text, label, probability in zip(texts, labels, probabilities, strict=True)
        if probability >= arguments.pseudo_label_threshold
    ]
    counts = Counter(name for row in taken for name in np.atleast_1d(row["label"]).tolist())
    logger.warning(
        "%s: %d of %d texts are labelled with a probability of --pseudo-label-threshold %g or more: %s; the highest"
        " probability is %.4f",
        arguments.unlabeled_file,
        len(taken),
        len(texts),
        arguments.pseudo_label_threshold,
        ", ".join(f"{name} {counts[name]}" for name in names),
        probabilities.max(),
    )
    return taken
