"""Conversations: the layouts they come in, and which tokens the assistant says."""

import pytest

from baichuan_hf import BaichuanTokenizer, bundled_checkpoint
from baichuan_hf.data.conversations import encode_conversation, to_messages


QUESTION, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer():
    return BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        pytest.param({"messages": [QUESTION, ANSWER]}, [QUESTION, ANSWER], id="messages"),
        pytest.param(
            {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "Hello."}]},
            [QUESTION, ANSWER],
            id="sharegpt",
        ),
        pytest.param(
            {"conversations": [{"from": "user", "value": "你好"}], "system": "Be brief."},
            [SYSTEM, QUESTION],
            id="sharegpt-system",
        ),
        pytest.param({"instruction": "你好", "input": "", "output": "Hello."}, [QUESTION, ANSWER], id="alpaca"),
        pytest.param(
            {"instruction": "Translate.", "input": "你好", "output": "Hello."},
            [{"role": "user", "content": "Translate.\n你好"}, ANSWER],
            id="alpaca-input",
        ),
        pytest.param(
            {"instruction": "a", "output": "b", "history": [["你好", "Hello."]], "system": None},
            [QUESTION, ANSWER, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            id="alpaca-history",
        ),
    ],
)
def test_layouts(row, messages):
    assert to_messages(row) == messages


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"text": "x"}, "no conversation in a row with 'text'"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "unknown speaker 'narrator'; known are human"),
        ({"messages": [{"role": "human", "content": "x"}]}, "message 0: unknown role 'human'; known are system, user"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "message 1, of the assistant: .* no text"),
    ],
)
def test_no_conversation(row, part):
    with pytest.raises(ValueError, match=part):
        to_messages(row)


@pytest.mark.parametrize(
    "messages",
    [[QUESTION, ANSWER], [SYSTEM, QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, {**ANSWER, "content": "再见！"}]],
    ids=["one", "system", "two"],
)
def test_the_assistant_s_part_is_the_label(tokenizer, messages):
    encoded = encode_conversation(messages, tokenizer)
    prompt = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"] == [*prompt, tokenizer.eos_token_id]
    assert all(label in (-100, token) for token, label in zip(*encoded.values(), strict=True))
    said = tokenizer.decode([label for label in encoded["labels"] if label != -100])
    assert said == "".join(turn["content"] for turn in messages if turn["role"] == "assistant") + "</s>"


def test_a_template_that_writes_the_end_itself(tokenizer):
    first = BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    first.chat_template = (
        "{% for m in messages %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endfor %}"
    )
    assert encode_conversation([ANSWER], first)["input_ids"].count(first.eos_token_id) == 1


def test_a_conversation_that_ends_with_a_question_has_no_end(tokenizer):
    assert encode_conversation([QUESTION, ANSWER, QUESTION], tokenizer)["input_ids"][-1] != tokenizer.eos_token_id


def test_a_template_without_marks():
    plain = BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    plain.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="does not mark the assistant's part"):
        encode_conversation([ANSWER], plain)
