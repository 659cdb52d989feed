"""`--task classify`: one label for each text."""

import functools
import logging
from collections import Counter
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from ..checkpoints import resolve_model
from ..data.tables import hold_out, load_train_and_test, require_columns
from .arguments import TrainArguments
from .trainer import add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save


logger = logging.getLogger(__name__)


def train_classifier(arguments: TrainArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Fine-tune a sequence classifier; labels are discovered in the training rows and stored in `config.id2label`.

    Returns the metrics that all_results.json holds: among them `eval_loss`, `eval_accuracy`, `eval_f1_macro` and, to
    compare with, `eval_majority_accuracy`, what always giving the most frequent training label scores. Raises
    ValueError or FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    rows = load_labelled_texts(arguments)
    names = rows["train"].features["label"].names
    tokenizer = load_tokenizer(arguments)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return tokenizer(batch["text"], truncation=True, max_length=arguments.max_length)

    encoded = rows.map(encode, batched=True, remove_columns="text", desc="Tokenizing")
    load = functools.partial(
        load_model,
        AutoModelForSequenceClassification,
        training_arguments=training_arguments,
        tokenizer=tokenizer,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="single_label_classification",
    )
    majority_label = Counter(rows["train"]["label"]).most_common(1)[0][0]
    trainer = Trainer(
        model=add_adapters(load(arguments), arguments, task_type="SEQ_CLS"),
        args=training_arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("test"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=functools.partial(classification_metrics, majority_label=majority_label),
    )
    return train_and_save(trainer, arguments, load, pipeline_tag="text-classification")


def classification_metrics(prediction: EvalPrediction, *, majority_label: int) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur in labels or predictions, as scikit-learn does."""
    labels = prediction.label_ids
    predicted = np.asarray(prediction.predictions).argmax(-1)
    f1 = [
        2 * np.sum((predicted == name) & (labels == name)) / (np.sum(predicted == name) + np.sum(labels == name))
        for name in np.union1d(labels, predicted)
    ]
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "f1_macro": float(np.mean(f1)),
        "majority_accuracy": float(np.mean(labels == majority_label)),
    }


def load_labelled_texts(arguments: TrainArguments) -> DatasetDict:
    """`train` and, unless --eval-fraction is 0, `test`: columns `text` and `label`, a ClassLabel.

    Rows without a text or a label are left out, with a warning. Without --eval-file the rows of `test` are those of
    the source's own `validation` or `test` split, else a stratified share of the training rows.
    """
    splits = load_train_and_test(arguments.train_file, arguments.eval_file)
    texts = {split: _texts_with_names(rows, arguments, arguments.sources[split]) for split, rows in splits.items()}
    names = _label_names(splits["train"], set(texts["train"]["label"]), arguments)
    for split, rows in texts.items():
        if unknown := sorted(set(rows["label"]) - set(names)):
            allowed = ", ".join(map(repr, names))
            raise ValueError(
                f"{arguments.sources[split]}: label {unknown[0]!r} is not among those to learn: {allowed}"
            )
        texts[split] = rows.cast_column("label", ClassLabel(names=names))
    _warn_of_imbalance(texts["train"])
    if "test" in texts or not arguments.eval_fraction:
        return DatasetDict(texts)
    return hold_out(texts["train"], arguments.eval_fraction, by="label")


def _texts_with_names(rows: Dataset, arguments: TrainArguments, source: str) -> Dataset:
    """Columns `text` and `label`, both strings, of the rows that have both."""
    text_column, label_column = arguments.text_column, arguments.label_column
    require_columns(rows, {"--text-column": text_column, "--label-column": label_column}, source)
    feature = rows.features[label_column]

    def name_of(label: Any) -> str:
        if isinstance(feature, ClassLabel):
            return "" if label is None or label < 0 else feature.names[label]  # the Hub marks unlabelled rows by -1
        if isinstance(label, list | dict) or (isinstance(label, float) and not label.is_integer()):
            raise ValueError(
                f"{source}: --label-column {label_column!r} holds {label!r}; --task classify wants one class for each "
                "text: a word, a whole number or true/false"
            )
        return "" if label is None else str(int(label) if isinstance(label, float) else label).strip()

    def select(row: dict[str, Any]) -> dict[str, str]:
        text = row[text_column]
        return {"text": "" if text is None else str(text), "label": name_of(row[label_column])}

    # Without `features` a new column takes the type of an old one of its name: "0" would become 0, and be dropped.
    features = Features({"text": Value("string"), "label": Value("string")})
    texts = rows.map(select, remove_columns=rows.column_names, features=features, desc="Reading labels")
    complete = texts.filter(lambda row: bool(row["text"].strip() and row["label"]), desc="Dropping incomplete rows")
    if not complete:
        raise ValueError(f"{source}: none of {len(rows)} rows has both {text_column!r} and {label_column!r}")
    if len(complete) < len(rows):
        logger.warning(
            "%s: %d of %d rows lack a text or a label and are left out", source, len(rows) - len(complete), len(rows)
        )
    return complete


def _label_names(rows: Dataset, found: set[str], arguments: TrainArguments) -> list[str]:
    """In the order of their ids: those of a model that is a classifier already, of the data set, or else sorted."""
    if not arguments.from_scratch:
        config = AutoConfig.from_pretrained(resolve_model(arguments.model))
        if any("ForSequenceClassification" in name for name in config.architectures or ()):
            return [config.id2label[index] for index in range(config.num_labels)]
    feature = rows.features[arguments.label_column]
    if isinstance(feature, ClassLabel):
        return feature.names
    if len(found) < 2:
        raise ValueError(f"{arguments.train_file}: every label is {found.pop()!r}; a classifier needs two or more")
    return sorted(found, key=int) if all(name.lstrip("-").isdecimal() for name in found) else sorted(found)


def _warn_of_imbalance(rows: Dataset) -> None:
    names = rows.features["label"].names
    counts = Counter(rows["label"]).most_common()
    (_, most), (_, fewest) = counts[0], counts[-1]
    if most >= 2 * fewest:
        shares = ", ".join(f"{names[index]} {count} ({count / len(rows):.0%})" for index, count in counts)
        logger.warning("Labels are unevenly distributed: %s; look at eval_f1_macro rather than accuracy", shares)
