"""Prompts with a word for each label, scored by a language model."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import bundled_checkpoint
from baichuan_hf.data.prompts import Prompt, PromptCollator, check_words, encode_prompts, score_batch
from baichuan_hf.training import predict_labels, score_labels


TEXTS = ["房间很大", "the room was too small for the two of us", "服务态度非常差，再也不来了。", ""]
# Words of one token, of several, of different numbers of them, and in front of the text.
PROMPTS = [
    pytest.param(Prompt("{text}总之很{label}", {"bad": "差", "good": "好"}), id="token"),
    pytest.param(Prompt("{text} It was {label}.", {"bad": "terrible", "good": "great", "so": "so so"}), id="tokens"),
    pytest.param(Prompt("很{label}。{text}", {"bad": "差", "good": "不错"}), id="channel"),
    pytest.param(Prompt("{label}：{text}", {"bad": "差评", "good": "好评"}), id="first"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_checkpoint("tiny"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(bundled_checkpoint("tiny"), dtype=torch.float32).eval()


@torch.no_grad()
def score_one_by_one(model, tokenizer, text, prompt):
    """Log-probability of each filled template, less that of the tokens that all begin with."""
    ids = [tokenizer(filled).input_ids for filled in prompt.fill(text)]
    shared = len(list(itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*ids, strict=False))))
    scores = []
    for row in ids:
        log_probs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        scores.append(sum(log_probs[place - 1, row[place]] for place in range(max(shared, 1), len(row))))
    return torch.stack(scores)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_batched_scores_equal_those_of_plain_passes(model, tokenizer, prompt):
    scores = score_labels(model, tokenizer, TEXTS, prompt, batch_size=3)
    expected = torch.stack([score_one_by_one(model, tokenizer, text, prompt) for text in TEXTS])
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-4)
    assert predict_labels(model, tokenizer, TEXTS, prompt) == [prompt.labels[row.argmax()] for row in expected]


def test_words_of_one_token_cost_one_pass(tokenizer):
    prompt = Prompt("{text}总之很{label}", {"bad": "差", "good": "好", "so": "一"})
    columns = encode_prompts(TEXTS, prompt, tokenizer, max_length=64)
    rows = [
        {"input_ids": ids, "start": start} for ids, start in zip(columns["input_ids"], columns["start"], strict=True)
    ]
    assert len(PromptCollator(tokenizer)(rows)["input_ids"]) == len(TEXTS)


def test_long_texts_are_cut_and_the_template_is_not(tokenizer):
    prompt = Prompt("评价：{text}总之很{label}", {"bad": "差", "good": "不怎么样"})
    columns = encode_prompts(["大" * 100, "大"], prompt, tokenizer, max_length=20)
    assert columns["cut"] == [True, False]
    assert max(map(len, columns["input_ids"][0])) == 20
    for ids, word in zip(columns["input_ids"][0], prompt.words.values(), strict=True):
        assert tokenizer.decode(ids).startswith("评价：大大")
        assert tokenizer.decode(ids).endswith("大总之很" + word)
    with pytest.raises(ValueError, match=r"--max-length 6 leaves no room for a text: the template takes \d+ tokens"):
        encode_prompts(["大"], prompt, tokenizer, max_length=6)


def test_gradients_reach_the_model(model, tokenizer):
    prompt = Prompt("{text}总之很{label}", {"bad": "差", "good": "好"})
    columns = encode_prompts(TEXTS[:1], prompt, tokenizer, max_length=64)
    batch = PromptCollator(tokenizer)(
        [{"input_ids": columns["input_ids"][0], "start": columns["start"][0], "label": 1}]
    )
    score_batch(model, batch)[0, batch["answers"][0]].backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_a_bias_is_subtracted(model, tokenizer):
    words = {"bad": "差", "good": "好"}
    plain = score_labels(model, tokenizer, TEXTS, Prompt("{text}很{label}", words))
    biased = score_labels(model, tokenizer, TEXTS, Prompt("{text}很{label}", words, bias=(1.0, -2.0)))
    torch.testing.assert_close(biased, plain - torch.tensor([1.0, -2.0]))


def test_saved_and_read_again(tmp_path):
    for bias in (None, (0.5, 1.0)):
        prompt = Prompt("{text}很{label}", {"bad": "差", "good": "好"}, bias)
        prompt.save(tmp_path)
        assert Prompt.load(tmp_path) == prompt


@pytest.mark.parametrize(
    ("template", "words", "message"),
    [
        pytest.param("{text}", {"a": "x"}, "'{text}': must hold {label} once", id="no-label"),
        pytest.param("{label}", {"a": "x"}, "must hold {text} once", id="no-text"),
        pytest.param("{text}{text}{label}", {"a": "x"}, "must hold {text} once", id="twice"),
        pytest.param("{text}{label}", {"a": "x", "b": "x"}, "'x' stands for 'a' and for 'b'", id="same"),
        pytest.param("{text}{label}", {"a": "x", "b": ""}, "label 'b' has no word", id="empty"),
    ],
)
def test_wrong_prompts_are_refused(template, words, message):
    with pytest.raises(ValueError, match=message):
        Prompt(template, words)


def test_words_that_begin_with_others_are_refused(tokenizer):
    words = {"good": "好", "best": "好好好"}
    with pytest.raises(ValueError, match="tokens of '好好好' .'best'. begin with those of '好' .'good'."):
        check_words(Prompt("{text}{label}", words), tokenizer)
    check_words(Prompt("{text}{label}。", words), tokenizer)
