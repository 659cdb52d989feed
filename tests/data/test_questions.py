"""Files of questions, windows over long texts, and the spans found in them."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from baichuan_hf.data.questions import best_span, encode_question, find_answer, find_tokens, load_question_splits
from tests.helpers.models import golden_folder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(golden_folder("tokenizers") / "baichuan-surrogate")


def squad(*paragraphs):
    return {"version": "1", "data": [{"title": "t", "paragraphs": list(paragraphs)}]}


QUESTION = {"id": 7, "question": "谁？", "answers": [{"text": "李明", "answer_start": 0}]}
ROW = {
    "id": "7",
    "question": "谁？",
    "context": "李明来了",
    "answers": {"text": ["李明"], "answer_start": [0]},
}


def test_nested_and_flat_files_give_the_same_rows(tmp_path):
    unanswerable = {"id": "8", "question": "何时？", "is_impossible": True}
    content = squad({"context": "李明来了", "qas": [QUESTION, unanswerable]})
    (tmp_path / "nested.json").write_text(json.dumps(content), encoding="utf-8-sig")
    none = ROW | {"id": "8", "question": "何时？", "answers": {"text": [], "answer_start": []}}
    Dataset.from_list([ROW, none]).to_json(tmp_path / "flat.json")
    (tmp_path / "list.json").write_text(json.dumps([ROW, none]))
    for name in ("nested", "flat", "list"):
        assert list(load_question_splits(str(tmp_path / f"{name}.json"))["train"]) == [ROW, none]


def test_files_cut_off_or_of_another_layout_are_named(tmp_path):
    text = json.dumps(squad({"context": "李明来了", "qas": [QUESTION]}), ensure_ascii=False)
    (tmp_path / "cut.json").write_text(text[:-9], encoding="utf-8")
    (tmp_path / "half.json").write_bytes(text.encode()[: text.encode().index("明".encode()) + 1])
    (tmp_path / "cmrc.json").write_text('{"data": [{"context_text": "李明来了"}]}')
    for name in ("cut", "half"):
        with pytest.raises(ValueError, match=f"{name}.json: cannot be read, is it cut off"):
            load_question_splits(str(tmp_path / f"{name}.json"))
    with pytest.raises(ValueError, match=r"cmrc.json: not of SQuAD's layout .*'paragraphs'"):
        load_question_splits(str(tmp_path / "cmrc.json"))


@pytest.mark.parametrize(
    ("texts", "starts", "span"),
    [
        pytest.param(["明"], [1], (1, 2), id="right"),
        pytest.param(["李", "来了"], [1, 2], (2, 4), id="second"),
        pytest.param(["李"], [1], None, id="elsewhere"),
        pytest.param(["了"], [-1], None, id="negative"),
        pytest.param(["了吗"], [3], None, id="beyond"),
        pytest.param([""], [0], None, id="empty"),
        pytest.param([], [], None, id="none"),
    ],
)
def test_an_answer_is_found_where_it_is_said_to_stand(texts, starts, span):
    assert find_answer("李明来了", texts, starts) == span


CONTEXTS = st.text(alphabet="北京大𪚥😀龘 ab\n，", min_size=1, max_size=80)


def assert_spelt(tokenizer, context, first, last):
    """The characters [first, last) in all windows that find them, which are one at least."""
    windows = encode_question("谁？", context, tokenizer, max_length=48, doc_stride=16)
    assert all(len(ids) <= 48 for ids in windows["input_ids"])
    holding = 0
    for ids, offsets in zip(windows["input_ids"], windows["offsets"], strict=True):
        assert len(ids) == len(offsets)
        begin, end = find_tokens(offsets, (first, last))
        if end == len(ids) - 1:
            assert begin == end
            continue
        holding += 1
        # A token may hold more than the answer, as the space before a word.
        assert offsets[begin][0] <= first < offsets[begin][1]
        assert offsets[end][0] < last <= offsets[end][1]
        assert begin == 0 or offsets[begin - 1][1] <= first
        assert offsets[end + 1][0] in (-1, *range(last, len(context) + 1))
        spelt = tokenizer.decode(ids[begin : end + 1])
        assert context[first:last].strip() in spelt
    assert holding >= 1


@settings(max_examples=100, deadline=None)
@given(context=CONTEXTS, data=st.data())
def test_every_answer_is_spelt_by_the_tokens_of_a_window(tokenizer, context, data):
    first = data.draw(st.integers(0, len(context) - 1))
    last = data.draw(st.integers(first + 1, min(first + 3, len(context))))
    assert_spelt(tokenizer, context, first, last)


@pytest.mark.parametrize("before", range(15, 20))
def test_characters_that_the_end_of_a_window_cuts(tokenizer, before):
    """Each is several tokens, one for each of its bytes."""
    context = "a" * before + "龘" * 4 + "😀" * 4
    for first in range(len(context)):
        assert_spelt(tokenizer, context, first, first + 1)


def test_question_first_then_text_then_end(tokenizer):
    windows = encode_question("谁来了？", "李明来了。" * 20, tokenizer, max_length=40, doc_stride=8)
    asked = tokenizer("谁来了？\n")["input_ids"]
    assert len(windows["input_ids"]) > 1
    for ids, offsets in zip(windows["input_ids"], windows["offsets"], strict=True):
        assert ids[: len(asked)] == asked
        assert ids[-1] == tokenizer.eos_token_id
        assert [place for place, _ in offsets].count(-1) == len(asked) + 1
    shared = set(map(tuple, windows["offsets"][0])) & set(map(tuple, windows["offsets"][1])) - {(-1, -1)}
    assert len(shared) == 8


@pytest.mark.parametrize("question", ["谁" * 500, "𪚥" * 500, "", "who " * 500])
@pytest.mark.parametrize("max_length", [32, 33, 100])
def test_a_long_question_leaves_room_for_the_text(tokenizer, question, max_length):
    windows = encode_question(
        question, "李明来了。" * 50, tokenizer, max_length=max_length, doc_stride=max_length // 3
    )
    assert all(len(ids) <= max_length for ids in windows["input_ids"])
    ends = [max(end for _, end in offsets) for offsets in windows["offsets"]]
    assert ends[-1] == 250


def test_best_span_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for length in (1, 2, 7):
        offsets = np.array([(-1, -1), *((i, i + 1) for i in range(12)), (-1, -1)])
        starts, ends = generator.normal(size=(2, 20))  # padding follows
        score, (first, last) = best_span(starts, ends, offsets, max_answer_length=length)
        spans = {(i, j + 1): starts[i + 1] + ends[j + 1] for i in range(12) for j in range(i, min(12, i + length))}
        assert (first, last) == max(spans, key=spans.get)
        assert score == pytest.approx(spans[first, last] - starts[13] - ends[13])


def test_a_window_without_text_has_no_span():
    assert best_span(np.zeros(3), np.zeros(3), np.full((3, 2), -1), max_answer_length=5) == (-np.inf, (0, 0))
