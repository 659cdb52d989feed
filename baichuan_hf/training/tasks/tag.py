"""`--task tag`: a tag for each word, as in named entity recognition."""

import ast
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ...checkpoints import resolve_model
from ...data.tables import hold_out, load_train_and_test, require_columns
from ...data.tagging import encode_words, find_entities, load_tagged_splits
from ..arguments import TrainArguments, option
from ..trainer import OrderedTrainer, add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save


logger = logging.getLogger(__name__)

Tags = list[list[str]]


@dataclass
class TagArguments(TrainArguments):
    """What `--task tag` takes; --train-file and --eval-file may also be files of CoNLL's layout."""

    text_column: str = option("Column with the words of a sentence: a list, or a text with spaces between.", "tokens")
    label_column: str = option("Column with a tag for each word, likewise.", "tags")
    word_separator: str = option("What stands between words: nothing for Chinese characters, ' ' for English.", "")


def train_tagger(arguments: TagArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Fine-tune a token classifier; tags are discovered in the training rows and stored in `config.id2label`.

    A causal model has not read what follows a word when it tags it; `--config-overrides is_causal=false` makes an
    encoder of it, which has. Returns the metrics that all_results.json holds: among them `eval_loss`, `eval_accuracy`
    over words and, if the tags mark entities (BIO, BIOES or BMES), seqeval's `eval_precision`, `eval_recall` and
    `eval_f1`. Raises ValueError or FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    rows, names = load_tagged_sentences(arguments)
    tokenizer = load_tokenizer(arguments)
    tokenizer.padding_side = "right"  # else the places of pieces would be others in a batch
    encoded = DatasetDict({split: _encode(rows[split], tokenizer, arguments, names, split) for split in rows})
    load = functools.partial(
        load_model,
        AutoModelForTokenClassification,
        training_arguments=training_arguments,
        tokenizer=tokenizer,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        test = encoded["test"]
        predicted = [
            [names[ids[place]] if place >= 0 else "O" for place in last]
            for ids, last in zip(prediction.predictions, test["last_pieces"], strict=True)
        ]
        return tagging_metrics(list(test["tags"]), predicted)

    trainer = OrderedTrainer(
        model=add_adapters(load(arguments), arguments, task_type="TOKEN_CLS"),
        args=training_arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("test"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=compute_metrics,
        # Else the logits of the whole evaluation would be held.
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    return train_and_save(trainer, arguments, load, pipeline_tag="token-classification")


@torch.no_grad()
def predict_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    word_separator: str = "",
) -> Tags:
    """The tag of every word; "O" for a word without a piece, as the empty one."""
    tags = []
    for words in sentences:
        encoding, last = encode_words(words, tokenizer, separator=word_separator)
        ids: list[int] = []
        if encoding["input_ids"]:
            logits = model(input_ids=torch.tensor([encoding["input_ids"]], device=model.device)).logits
            ids = logits[0].argmax(-1).tolist()
        tags.append([model.config.id2label[ids[place]] if place >= 0 else "O" for place in last])
    return tags


def tagging_metrics(tags: Tags, predicted: Tags) -> dict[str, float]:
    """Accuracy over words; if all `tags` are O or of the form MARK-TYPE, also precision, recall and F1 over entities.

    The latter three are micro-averages, those of seqeval's default mode.
    """
    metrics = {"accuracy": float(np.mean(np.concatenate(tags) == np.concatenate(predicted)))}
    if all(tag == "O" or tag[:2] in ("B-", "I-", "M-", "E-", "S-") for row in tags for tag in row):
        true = {(index, *entity) for index, row in enumerate(tags) for entity in find_entities(row)}
        found = {(index, *entity) for index, row in enumerate(predicted) for entity in find_entities(row)}
        metrics["precision"] = len(true & found) / max(len(found), 1)
        metrics["recall"] = len(true & found) / max(len(true), 1)
        metrics["f1"] = 2 * len(true & found) / max(len(true) + len(found), 1)
    return metrics


def load_tagged_sentences(arguments: TagArguments) -> tuple[DatasetDict, list[str]]:
    """`train` and, unless --eval-fraction is 0, `test`, with columns `words` and `tags`; and the names of the tags.

    Sentences without words are left out, with a warning.
    """
    splits = load_train_and_test(arguments.train_file, arguments.eval_file, load=load_tagged_splits)
    rows = {split: _words_with_tags(splits[split], arguments, arguments.sources[split]) for split in splits}
    names = _tag_names(splits["train"], rows["train"], arguments)
    for split in rows:
        if unknown := sorted({tag for tags in rows[split]["tags"] for tag in tags} - set(names)):
            allowed = ", ".join(map(repr, names))
            raise ValueError(f"{arguments.sources[split]}: tag {unknown[0]!r} is not among those to learn: {allowed}")
    if "test" in rows or not arguments.eval_fraction:
        return DatasetDict(rows), names
    return hold_out(rows["train"], arguments.eval_fraction), names


def _words_with_tags(rows: Dataset, arguments: TagArguments, source: str) -> Dataset:
    """Columns `words` and `tags`, lists of strings, of the rows that have words."""
    columns = {"--text-column": arguments.text_column, "--label-column": arguments.label_column}
    require_columns(rows, columns, source)
    feature = getattr(rows.features[arguments.label_column], "feature", None)

    def listed(cell: Any, option: str) -> list[Any]:
        if isinstance(cell, str):  # csv has no lists
            try:
                cell = ast.literal_eval(cell) if cell.startswith("[") else cell.split()
            except (SyntaxError, ValueError):
                cell = cell.split()
        if not isinstance(cell, list | None):
            raise ValueError(f"{source}: {option} {columns[option]!r} holds {cell!r}; --task tag wants a list")
        return cell or []

    def select(row: dict[str, Any], index: int) -> dict[str, list[str]]:
        words = listed(row[arguments.text_column], "--text-column")
        tags = listed(row[arguments.label_column], "--label-column")
        if len(words) != len(tags):
            raise ValueError(
                f"{source}: row {index + 1} has {len(words)} words, but {len(tags)} tags: {words[:5]} ..."
            )
        if isinstance(feature, ClassLabel):
            tags = [feature.names[tag] for tag in tags]
        return {"words": [str(word) for word in words], "tags": [str(tag) for tag in tags]}

    features = Features({"words": ListOf(Value("string")), "tags": ListOf(Value("string"))})
    tagged = rows.map(
        select, with_indices=True, remove_columns=rows.column_names, features=features, desc="Reading tags"
    )
    complete = tagged.filter(lambda row: any(row["words"]), desc="Dropping empty sentences")
    if not complete:
        raise ValueError(f"{source}: none of {len(rows)} rows has words in {arguments.text_column!r}")
    if len(complete) < len(rows):
        logger.warning("%s: %d of %d rows have no words: left out", source, len(rows) - len(complete), len(rows))
    return complete


def _tag_names(rows: Dataset, tagged: Dataset, arguments: TagArguments) -> list[str]:
    """In the order of their ids: those of a model that is a tagger already, of the data set, or else sorted."""
    if not arguments.from_scratch:
        config = AutoConfig.from_pretrained(resolve_model(arguments.model))
        if any("ForTokenClassification" in name for name in config.architectures or ()):
            return [config.id2label[index] for index in range(config.num_labels)]
    feature = getattr(rows.features[arguments.label_column], "feature", None)
    if isinstance(feature, ClassLabel):
        return feature.names
    names = sorted({tag for tags in tagged["tags"] for tag in tags})
    if len(names) < 2:
        raise ValueError(f"{arguments.train_file}: every tag is {names[0]!r}; a tagger needs two or more")
    return names


def _encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: TagArguments, names: list[str], split: str
) -> Dataset:
    """Adds `input_ids`, `labels` (-100 but at the last piece of a word), and `last_pieces`; reports what was cut."""
    ids = {name: index for index, name in enumerate(names)}

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoding, last = encode_words(
            row["words"], tokenizer, max_length=arguments.max_length, separator=arguments.word_separator
        )
        labels = [-100] * len(encoding["input_ids"])
        for place, tag in zip(last, row["tags"], strict=True):
            if place >= 0:
                labels[place] = ids[tag]
        return {**encoding, "labels": labels, "last_pieces": last}

    encoded = rows.map(encode, remove_columns="words", desc="Tokenizing")
    lost = [sum(place < 0 for place in last) for last in encoded["last_pieces"]]
    if any(lost):
        logger.warning(
            "%s: %d of %d sentences lose words, %d in all, that --max-length %d cuts off or that are empty; in"
            " evaluation they count as tagged O",
            arguments.sources[split],
            sum(map(bool, lost)),
            len(rows),
            sum(lost),
            arguments.max_length,
        )
    return encoded
