"""The rows of `--task classify`: texts with one label, several, or a number each."""

import logging
import math
import random
from collections import Counter
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import AutoConfig, PreTrainedConfig

from ...checkpoints import resolve_model
from ...data.tables import hold_out, load_splits, load_train_and_test, require_columns
from .classify_arguments import MULTI, REGRESSION, SINGLE, ClassifyArguments


logger = logging.getLogger(__name__)


def load_labelled_texts(arguments: ClassifyArguments) -> DatasetDict:
    """`train` and, unless --eval-fraction is 0, `test`: columns `text` and `label`.

    `label` is a ClassLabel, a list of them, or a float: `problem_type` tells which. Rows without a text or a label are
    left out, with a warning; an empty list, or with several labels an empty cell, is a label that says "none". Without
    --eval-file the rows of `test` are those of the source's own `validation` or `test` split, else a share of the
    training rows, stratified where each has one label.
    """
    splits = load_train_and_test(arguments.train_file, arguments.eval_file)
    columns = {"--text-column": arguments.text_column, "--label-column": arguments.label_column}
    for split, rows in splits.items():
        require_columns(rows, columns, arguments.sources[split])
    kind = _find_problem_type(splits["train"], arguments)
    texts = {split: _read(rows, arguments, arguments.sources[split], kind) for split, rows in splits.items()}
    if kind != REGRESSION:
        names = _label_names(splits["train"], texts["train"], arguments)
        label = ClassLabel(names=names) if kind == SINGLE else ListOf(ClassLabel(names=names))
        for split, rows in texts.items():
            if unknown := sorted(_labels(rows) - set(names)):
                allowed = ", ".join(map(repr, names))
                raise ValueError(
                    f"{arguments.sources[split]}: label {unknown[0]!r} is not among those to learn: {allowed}"
                )
            texts[split] = rows.cast_column("label", label)
    if kind == SINGLE:
        _warn_of_imbalance(texts["train"])
    if "test" in texts or not arguments.eval_fraction:
        return DatasetDict(texts)
    return hold_out(texts["train"], arguments.eval_fraction, by="label" if kind == SINGLE else None)


def problem_type(rows: Dataset) -> str:
    """That of rows that `load_labelled_texts` gave, by transformers' names."""
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel):
        return SINGLE
    return MULTI if hasattr(feature, "feature") else REGRESSION


def label_names(rows: Dataset) -> list[str]:
    """In the order of their ids; those of a number: none."""
    feature = rows.features["label"]
    return getattr(getattr(feature, "feature", feature), "names", [])


def choose_examples(rows: Dataset, count: int, *, seed: int) -> Dataset:
    """`count` rows in all, as many of each label, the first ones having one more where it does not come out even.

    Raises ValueError for fewer than labels, and for a label that has too few.
    """
    names = label_names(rows)
    if count < len(names):
        raise ValueError(f"--few-shot {count} is fewer than the labels, {len(names)}: give 0, or one of each at least")
    labels = np.array(rows["label"])
    generator = random.Random(seed)
    chosen: list[int] = []
    for index, name in enumerate(names):
        share = count // len(names) + (index < count % len(names))
        there = np.flatnonzero(labels == index).tolist()
        if len(there) < share:
            raise ValueError(f"--few-shot {count} takes {share} examples of each label, but {name!r} has {len(there)}")
        chosen += generator.sample(there, share)
    return rows.select(chosen)


def load_unlabelled_texts(arguments: ClassifyArguments, rows: DatasetDict) -> Dataset:
    """The column `text` of --unlabeled-file, without empty and repeated ones and without the texts of `rows`."""
    source = str(arguments.unlabeled_file)
    splits = load_splits(source)
    found = splits["train"] if "train" in splits else next(iter(splits.values()))
    require_columns(found, {"--text-column": arguments.text_column}, source)
    texts = dict.fromkeys("" if text is None else str(text) for text in found[arguments.text_column])
    known = {text.strip() for split in rows.values() for text in split["text"]}
    new = [text for text in texts if text.strip() and text.strip() not in known]
    if not new:
        raise ValueError(f"{source}: --text-column {arguments.text_column!r} holds no text that is not known already")
    if len(new) < len(found):
        logger.warning(
            "%s: %d of %d rows are empty, repeated, or among the labelled ones: left out",
            source,
            len(found) - len(new),
            len(found),
        )
    return Dataset.from_dict({"text": new})


def trained_classifier(arguments: ClassifyArguments) -> PreTrainedConfig | None:
    """The config of --model if it is a classifier already."""
    if arguments.from_scratch:
        return None
    config = AutoConfig.from_pretrained(resolve_model(arguments.model))
    return config if any("ForSequenceClassification" in name for name in config.architectures or ()) else None


def _find_problem_type(rows: Dataset, arguments: ClassifyArguments) -> str:
    """--problem-type, else that of a trained classifier, else what the training labels are."""
    config = trained_classifier(arguments)
    learnt = config and (config.problem_type or (REGRESSION if config.num_labels == 1 else None))
    asked = arguments.problem_type or learnt
    if learnt and REGRESSION in (asked, learnt) and asked != learnt:
        raise ValueError(f"--problem-type is {asked}, but {arguments.model} has been trained for {learnt}")
    if asked:
        return asked
    feature = rows.features[arguments.label_column]
    if hasattr(feature, "feature"):
        return MULTI
    labels = [] if isinstance(feature, ClassLabel) else rows[arguments.label_column]
    numbers = [_number(label) for label in labels if label not in (None, "")]
    fractions = [number for number in numbers if number is not None and number % 1 > 0]
    if None in numbers or not fractions:
        return SINGLE
    logger.warning(
        "%s: the labels of %r are numbers that are not all whole, so this is regression; if they are classes, give"
        " --problem-type single_label_classification",
        arguments.train_file,
        arguments.label_column,
    )
    return REGRESSION


def _number(label: Any) -> float | None:
    try:
        return float(label)
    except (TypeError, ValueError):
        return None


def _read(rows: Dataset, arguments: ClassifyArguments, source: str, kind: str) -> Dataset:
    """Columns `text`, a string, and `label`, a string, a list of them or a float, of the rows that have both."""
    text_column, label_column = arguments.text_column, arguments.label_column
    feature = rows.features[label_column]

    def refuse(label: Any, wanted: str) -> ValueError:
        return ValueError(f"{source}: --label-column {label_column!r} holds {label!r}; {kind} wants {wanted}")

    def name_of(label: Any, feature: Any = feature) -> str:
        if isinstance(feature, ClassLabel) and not isinstance(label, str):
            return "" if label is None or label < 0 else feature.names[label]  # the Hub marks unlabelled rows by -1
        if isinstance(label, list | dict):
            raise refuse(label, "one class for each text: a word, a number or true/false")
        whole = isinstance(label, float) and label.is_integer()
        return "" if label is None or label != label else str(int(label) if whole else label).strip()

    def names_of(label: Any) -> list[str] | None:
        if isinstance(label, dict):
            raise refuse(label, f"a list of classes, or a text with {arguments.label_separator!r} between them")
        if isinstance(label, list):
            names = [name_of(name, getattr(feature, "feature", None)) for name in label]
        elif isinstance(label, str):
            names = [name.strip() for name in label.split(arguments.label_separator)]
        else:
            names = [name_of(label)]
            if not names[0]:
                return None
        return list(dict.fromkeys(filter(None, names)))

    def number_of(label: Any) -> float | None:
        if label is None or label == "" or label != label:
            return None
        number = _number(label)
        if number is None or not math.isfinite(number):
            raise refuse(label, "a finite number for each text")
        return number

    label_of: Any = {SINGLE: name_of, MULTI: names_of, REGRESSION: number_of}[kind]
    label_type = {SINGLE: Value("string"), MULTI: ListOf(Value("string")), REGRESSION: Value("float32")}[kind]

    def select(row: dict[str, Any]) -> dict[str, Any]:
        text = row[text_column]
        return {"text": "" if text is None else str(text), "label": label_of(row[label_column])}

    # Without `features` a new column takes the type of an old one of its name: "0" would become 0, and be dropped.
    features = Features({"text": Value("string"), "label": label_type})
    texts = rows.map(select, remove_columns=rows.column_names, features=features, desc="Reading labels")
    complete = texts.filter(
        lambda row: bool(row["text"].strip()) and row["label"] not in (None, ""), desc="Dropping incomplete rows"
    )
    if not complete:
        raise ValueError(f"{source}: none of {len(rows)} rows has both {text_column!r} and {label_column!r}")
    if len(complete) < len(rows):
        logger.warning(
            "%s: %d of %d rows lack a text or a label and are left out", source, len(rows) - len(complete), len(rows)
        )
    return complete


def _labels(rows: Dataset) -> set[str]:
    """Of rows whose labels are strings or lists of them."""
    return {name for label in rows["label"] for name in ([label] if isinstance(label, str) else label)}


def _label_names(rows: Dataset, texts: Dataset, arguments: ClassifyArguments) -> list[str]:
    """In the order of their ids: those of a model that is a classifier already, of the data set, or else sorted."""
    if config := trained_classifier(arguments):
        return [config.id2label[index] for index in range(config.num_labels)]
    feature = rows.features[arguments.label_column]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, ClassLabel):
        return feature.names
    found = _labels(texts)
    if len(found) < 2:
        every = f"every label is {found.pop()!r}" if found else "no row has a label"
        raise ValueError(f"{arguments.train_file}: {every}; a classifier needs two or more")
    return sorted(found, key=int) if all(name.lstrip("-").isdecimal() for name in found) else sorted(found)


def _warn_of_imbalance(rows: Dataset) -> None:
    names = rows.features["label"].names
    counts = Counter(rows["label"]).most_common()
    (_, most), (_, fewest) = counts[0], counts[-1]
    if most >= 2 * fewest:
        shares = ", ".join(f"{names[index]} {count} ({count / len(rows):.0%})" for index, count in counts)
        logger.warning("Labels are unevenly distributed: %s; look at eval_f1_macro rather than accuracy", shares)
