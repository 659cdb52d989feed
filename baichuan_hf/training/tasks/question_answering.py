"""`--task qa`: find the answer to a question in a text."""

import functools
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ...data.answer_scores import choose_score
from ...data.questions import (
    Span,
    best_span,
    check_windows,
    encode_question,
    find_answer,
    find_tokens,
    load_question_splits,
)
from ...data.tables import SPLIT_SEED, load_train_and_test, require_columns
from ..arguments import TrainArguments, option
from ..trainer import OrderedTrainer, add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save


logger = logging.getLogger(__name__)

QUESTIONS = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "texts": ListOf(Value("string")),
        "starts": ListOf(Value("int64")),
    }
)


@dataclass
class QuestionArguments(TrainArguments):
    """What `--task qa` takes; --train-file and --eval-file may also be json files of SQuAD's layout."""

    question_column: str = option("Column with the question.", "question")
    text_column: str = option("Column with the text that answers it.", "context")
    label_column: str = option(
        'Column with the answers: {"text": [...], "answer_start": [...]}, empty where the text has none.', "answers"
    )
    doc_stride: int = option("Tokens that two consecutive windows of --max-length share in a long text.", 128)
    max_answer_length: int | None = option(
        "Longest answer to look for, in tokens; unset: the length of the longest that is trained on."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_windows(self.max_length, self.doc_stride)
        if self.max_answer_length is not None and self.max_answer_length < 1:
            raise ValueError(f"--max-answer-length is {self.max_answer_length}; it must be at least 1")


def train_question_answering(arguments: QuestionArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Fine-tune a model to extract answers; besides what every task writes, predictions.json: the answers by id.

    That a text holds no answer can be learnt, and is then predicted, if rows of the training file have none. Returns
    the metrics that all_results.json holds: among them `eval_loss`, and by CMRC 2018's definition if most questions
    are Chinese, else by SQuAD's, `eval_exact_match` and `eval_f1`, from 0 to 1. Raises ValueError or
    FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    rows = load_questions(arguments)
    tokenizer = load_tokenizer(arguments)
    tokenizer.padding_side = "right"  # else the places of tokens would be others among the logits
    windows = DatasetDict({split: encode_windows(rows[split], tokenizer, arguments) for split in rows})
    load = functools.partial(
        load_model, AutoModelForQuestionAnswering, training_arguments=training_arguments, tokenizer=tokenizer
    )
    ends, starts = (np.array(windows["train"][name]) for name in ("end_positions", "start_positions"))
    max_answer_length = arguments.max_answer_length or int((ends - starts).max()) + 1
    predictions: dict[str, str] = {}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers = extract_answers(
            rows["test"],
            windows["test"],
            *prediction.predictions,
            max_answer_length=max_answer_length,
            may_be_none=not all(rows["train"]["texts"]),
        )
        predictions.update(zip(rows["test"]["id"], answers, strict=True))
        score = choose_score(rows["test"]["question"])
        scores = [score(answer, texts or [""]) for answer, texts in zip(answers, rows["test"]["texts"], strict=True)]
        exact, f1 = np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}

    trainer = OrderedTrainer(
        model=add_adapters(load(arguments), arguments, task_type="QUESTION_ANS"),
        args=training_arguments,
        train_dataset=windows["train"],
        eval_dataset=windows.get("test"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    metrics = train_and_save(trainer, arguments, load, pipeline_tag="question-answering")
    if predictions and trainer.is_world_process_zero():
        text = json.dumps(predictions, ensure_ascii=False, indent=2)
        (Path(str(training_arguments.output_dir)) / "predictions.json").write_text(text + "\n", encoding="utf-8")
    return metrics


@torch.no_grad()
def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[str, str]],
    *,
    max_length: int = 512,
    doc_stride: int = 128,
    max_answer_length: int = 60,
    may_be_none: bool = False,
) -> list[str]:
    """The answer to each (question, context), a part of the context; with `may_be_none` empty where it has none."""
    answers = []
    for question, context in questions:
        windows = encode_question(question, context, tokenizer, max_length=max_length, doc_stride=doc_stride)
        spans = []
        for index, offsets in enumerate(windows.pop("offsets")):
            inputs = {name: torch.tensor([values[index]], device=model.device) for name, values in windows.items()}
            outputs = model(**inputs)
            starts, ends = (side[0].float().cpu().numpy() for side in (outputs.start_logits, outputs.end_logits))
            spans.append(best_span(starts, ends, np.array(offsets), max_answer_length=max_answer_length))
        answers.append(_answer(context, max(spans), may_be_none=may_be_none))
    return answers


def extract_answers(
    rows: Dataset,
    windows: Dataset,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    *,
    max_answer_length: int,
    may_be_none: bool,
) -> list[str]:
    """For each of `rows` the best answer over its windows; with `may_be_none` empty where "none" scores higher.

    Args:
        windows: as `encode_windows` gives them.
        start_logits: (windows, T), as `end_logits`.
    """
    best: list[Span] = [(-np.inf, (0, 0))] * len(rows)
    spelt = windows.select_columns(["row", "offsets"])
    for window, starts, ends in zip(spelt, start_logits, end_logits, strict=True):
        found = best_span(starts, ends, np.array(window["offsets"]), max_answer_length=max_answer_length)
        best[window["row"]] = max(best[window["row"]], found)
    return [
        _answer(context, span, may_be_none=may_be_none) for context, span in zip(rows["context"], best, strict=True)
    ]


def _answer(context: str, span: Span, *, may_be_none: bool) -> str:
    score, (first, last) = span
    return "" if may_be_none and score < 0 else context[first:last].strip()


def encode_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: QuestionArguments) -> Dataset:
    """A row for each window: what the model takes, `start_positions`, `end_positions`, `offsets` and `row`, the
    index in `rows`."""

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"start_positions": [], "end_positions": [], "row": []}
        for position, row in enumerate(indices):
            question, context = batch["question"][position], batch["context"][position]
            encoded = encode_question(
                question, context, tokenizer, max_length=arguments.max_length, doc_stride=arguments.doc_stride
            )
            span = find_answer(context, batch["texts"][position], batch["starts"][position])
            for offsets in encoded["offsets"]:
                first, last = find_tokens(offsets, span)
                columns["start_positions"].append(first)
                columns["end_positions"].append(last)
                columns["row"].append(row)
            for name, values in encoded.items():
                columns.setdefault(name, []).extend(values)
        return columns

    return rows.map(
        encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Tokenizing questions"
    )


def load_questions(arguments: QuestionArguments) -> DatasetDict:
    """`train` and, unless --eval-fraction is 0, `test`: columns `id`, `question`, `context`, `texts` and `starts`.

    Rows without a question or a text are left out, and to train on those whose answer is not where it is said to be;
    in evaluation only its wording counts. Without --eval-file and a split of the source's own a share of the texts,
    with all their questions, is held out.
    """
    splits = load_train_and_test(arguments.train_file, arguments.eval_file, load=load_question_splits)
    rows = {split: _questions(splits[split], arguments, arguments.sources[split]) for split in splits}
    if "test" not in rows and arguments.eval_fraction:
        rows |= _hold_out_texts(rows["train"], arguments)
    rows["train"] = _answered_rows(rows["train"], arguments.train_file)
    return DatasetDict(rows)


def _questions(rows: Dataset, arguments: QuestionArguments, source: str) -> Dataset:
    columns = {
        "--question-column": arguments.question_column,
        "--text-column": arguments.text_column,
        "--label-column": arguments.label_column,
    }
    require_columns(rows, columns, source)

    def select(row: dict[str, Any], index: int) -> dict[str, Any]:
        answers = row[arguments.label_column] or {}
        if isinstance(answers, list):
            answers = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
        if not isinstance(answers, dict) or len(answers.get("text") or ()) != len(answers.get("answer_start") or ()):
            raise ValueError(
                f"{source}: row {index + 1}: {arguments.label_column!r} holds {answers!r}; --task qa wants"
                ' {"text": [...], "answer_start": [...]}, as many of one as of the other'
            )
        return {
            "id": str(row.get("id") or index),
            "question": (row[arguments.question_column] or "").strip(),
            "context": row[arguments.text_column] or "",
            "texts": answers.get("text") or [],
            "starts": answers.get("answer_start") or [],
        }

    questions = rows.map(
        select, with_indices=True, remove_columns=rows.column_names, features=QUESTIONS, desc="Reading questions"
    )
    complete = questions.filter(
        lambda row: bool(row["question"] and row["context"].strip()), desc="Dropping empty rows"
    )
    if not complete:
        raise ValueError(
            f"{source}: none of {len(rows)} rows has both {arguments.question_column!r} and {arguments.text_column!r}"
        )
    if len(complete) < len(rows):
        logger.warning(
            "%s: %d of %d rows lack a question or a text: left out", source, len(rows) - len(complete), len(rows)
        )
    return complete


def _answered_rows(rows: Dataset, source: str) -> Dataset:
    """Those that have no answer, or one that stands in the text at its `answer_start`."""

    def is_right(row: dict[str, Any]) -> bool:
        return not row["texts"] or find_answer(row["context"], row["texts"], row["starts"]) is not None

    right = rows.filter(is_right, desc="Checking answers")
    if len(right) < len(rows):
        wrong = next(row for row in rows if not is_right(row))
        text, start = wrong["texts"][0], wrong["starts"][0]
        there = wrong["context"][max(start, 0) :][: len(text)]
        report = (
            f"{source}: in {len(rows) - len(right)} of {len(rows)} rows the answer is not at its answer_start; the"
            f" first is {wrong['id']}: {text!r}, but at {start} the text has {there!r}"
        )
        if not right:
            raise ValueError(report)
        logger.warning("%s. They are not trained on.", report)
    return right


def _hold_out_texts(rows: Dataset, arguments: QuestionArguments) -> dict[str, Dataset]:
    # By text: a question about one that was trained on is easier.
    texts = list(dict.fromkeys(rows["context"]))
    count = round(len(texts) * arguments.eval_fraction)
    if not 1 <= count < len(texts):
        raise ValueError(
            f"--eval-fraction {arguments.eval_fraction} of {len(texts)} texts leaves one side none; give --eval-file"
        )
    held_out = set(random.Random(SPLIT_SEED).sample(texts, count))
    is_held_out = [context in held_out for context in rows["context"]]
    return {
        "train": rows.select([index for index, held in enumerate(is_held_out) if not held]),
        "test": rows.select(np.flatnonzero(is_held_out)),
    }
