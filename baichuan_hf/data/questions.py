"""Questions about texts, whose answers are parts of the text: rows, windows for a model, and the best span."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, logging

from .tables import load_splits


logger = logging.get_logger(__name__)

# A score and the characters [first, end) of the text.
Span = tuple[float, tuple[int, int]]


def load_question_splits(source: str) -> DatasetDict:
    """As `load_splits`, and json files of SQuAD's layout: columns `id`, `question`, `context`, `answers`.

    Raises ValueError naming the file where it is cut off, or the field that is missing.
    """
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return load_splits(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        # Some call a file .json that has an object a line.
        if getattr(error, "msg", "") == "Extra data":
            return load_splits(source)
        raise ValueError(f"{source}: cannot be read, is it cut off? {error}") from error
    if not isinstance(content, dict) or "data" not in content:
        return load_splits(source)
    try:
        rows = [
            {
                "id": str(question["id"]),
                "question": question["question"],
                "context": paragraph["context"],
                "answers": {
                    "text": [answer["text"] for answer in question.get("answers", ())],
                    "answer_start": [answer["answer_start"] for answer in question.get("answers", ())],
                },
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: not of SQuAD's layout (data, paragraphs, context, qas): {error!r}") from error
    return DatasetDict(train=Dataset.from_list(rows))


def find_answer(context: str, texts: Sequence[str], starts: Sequence[int]) -> tuple[int, int] | None:
    """The characters [first, end) of the first answer that stands in `context` where it is said to, if one does."""
    for text, start in zip(texts, starts, strict=True):
        if text and start >= 0 and context.startswith(text, start):
            return start, start + len(text)
    return None


def check_windows(max_length: int, doc_stride: int) -> None:
    """Raise ValueError where half a window, what the longest question leaves, would not get on through a text."""
    if max_length < 32:
        raise ValueError(f"max_length is {max_length}; a question and a part of a text need 32 or more")
    if not 0 <= 3 * doc_stride <= max_length:
        raise ValueError(f"doc_stride is {doc_stride}; it must be at most a third of max_length ({max_length})")


def encode_question(
    question: str, context: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, doc_stride: int
) -> dict[str, list[Any]]:
    """The windows of at most `max_length` tokens in which a model reads `context`, consecutive ones sharing
    `doc_stride` tokens.

    The question stands before the context, for a causal model to know what it looks for, and is cut to half a window;
    </s> stands at the end, where such a model has read everything: the place that says "not answered here".

    Returns:
        Lists with an element for each window: `input_ids` and what else the tokenizer gives; `offsets`, (T, 2), the
        characters [first, end) of `context` that a token spells, (-1, -1) for those that spell none of it, or a
        part of a character, the rest of which is in another window.

    Raises:
        ValueError: `max_length` or `doc_stride` does not fit, see `check_windows`.
    """
    check_windows(max_length, doc_stride)
    asked = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    half = max_length // 2 - tokenizer.num_special_tokens_to_add(pair=True) - 1
    if len(asked) > half:
        logger.warning_once(f"Questions of more than {half} tokens, half of a window, are cut to that.")
        question = question[: asked[half - 1][1]]
    encoded = tokenizer(
        question + "\n",
        context,
        truncation="only_second",
        max_length=max_length - 1,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    del encoded["overflow_to_sample_mapping"]
    offsets = [
        [place if part == 1 else (-1, -1) for place, part in zip(window, encoded.sequence_ids(index), strict=True)]
        for index, window in enumerate(encoded.pop("offset_mapping"))
    ]
    _leave_out_halves(offsets, doc_stride)
    windows = dict(encoded)
    end = tokenizer.convert_tokens_to_ids(tokenizer.eos_token or tokenizer.sep_token)
    for name, last in (("input_ids", end), ("attention_mask", 1), ("token_type_ids", 1)):
        if name in windows:
            windows[name] = [[*window, last] for window in windows[name]]
    return windows | {"offsets": [[*window, (-1, -1)] for window in offsets]}


def _leave_out_halves(offsets: list[list[Any]], doc_stride: int) -> None:
    """Mark the tokens of characters that the ends of windows cut: what is no token itself is one for each byte."""
    places = [[place for place in window if place[0] >= 0] for window in offsets]
    tokens = Counter(place for index, window in enumerate(places) for place in window[doc_stride if index else 0 :])
    for window, inside in zip(offsets, places, strict=True):
        halves = {place for place in {*inside[:1], *inside[-1:]} if inside.count(place) < tokens[place]}
        window[:] = [(-1, -1) if place in halves else place for place in window]


def find_tokens(offsets: Sequence[Sequence[int]], span: tuple[int, int] | None) -> tuple[int, int]:
    """The first and the last token that spell the characters `span`, or twice the last of all if not all is there."""
    nothing = len(offsets) - 1
    inside = [index for index, (first, _) in enumerate(offsets) if first >= 0]
    if span is None or not inside or offsets[inside[0]][0] > span[0] or offsets[inside[-1]][1] < span[1]:
        return nothing, nothing
    # Bytes of one character have the same offsets: an answer begins at the first of them and ends at the last.
    first = next(index for index in inside if offsets[index][1] > span[0])
    last = next(index for index in reversed(inside) if offsets[index][0] < span[1])
    return first, last


def best_span(
    start_logits: np.ndarray, end_logits: np.ndarray, offsets: np.ndarray, *, max_answer_length: int
) -> Span:
    """The score and the characters [first, end) of the best answer of one window, of at most `max_answer_length`
    tokens.

    All spans are compared, not only those of the n best starts and ends. The score is the sum of two logits less that
    of "not answered here", by which windows can be compared.

    Args:
        start_logits: (T,), as `end_logits`; padding may follow.
        offsets: (T, 2), as `encode_question` gives them.
    """
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    nothing = start_logits[len(offsets) - 1] + end_logits[len(offsets) - 1]
    if not len(inside):
        return -np.inf, (0, 0)
    scores = start_logits[inside, None] + end_logits[None, inside]
    allowed = np.tri(len(inside), k=max_answer_length - 1, dtype=bool) & ~np.tri(len(inside), k=-1, dtype=bool)
    first, last = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    characters = int(offsets[inside[first], 0]), int(offsets[inside[last], 1])
    return float(scores[first, last] - nothing), characters
