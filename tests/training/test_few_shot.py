"""`--task classify --few-shot`: a prompt that a language model is asked, untrained or trained on it."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from baichuan_hf import bundled_checkpoint
from baichuan_hf.training import (
    ClassifyArguments,
    Prompt,
    parse_arguments,
    predict_labels,
    score_labels,
    train,
    train_classifier,
)
from baichuan_hf.training.watch import NonFiniteLossError
from tests.helpers.checkpoint import quiet_arguments, reviews, write_csv


def ours(train_file, **values):
    values = {"text_column": "review", "label_column": "stars", "max_length": 32} | values
    return ClassifyArguments(task="classify", train_file=str(train_file), **values)


def theirs(folder, **values):
    return quiet_arguments(folder, **({"per_device_train_batch_size": 4, "learning_rate": 1e-3} | values))


WORDS = {"prompt_template": "{text} {label}", "verbalizer": "good=yes,bad=no"}


@pytest.mark.parametrize("method", [{}, {"lora": True, "lora_r": 4, "merge": True}], ids=["full", "lora"])
def test_a_few_examples_are_learnt_and_the_prompt_is_saved(reviews_csv, tmp_path, method):
    arguments = ours(reviews_csv, few_shot=8, **WORDS, **method)
    rate = 1e-2 if method else 1e-3
    metrics = train(arguments, theirs(tmp_path, num_train_epochs=10, learning_rate=rate))
    assert metrics["eval_accuracy"] == 1.0
    assert json.loads((tmp_path / "all_results.json").read_text()) == pytest.approx(metrics)
    folder = tmp_path / "merged" if method else tmp_path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = Prompt.load(tmp_path)
    assert prompt.words == {"bad": "no", "good": "yes"}
    assert predict_labels(model, tokenizer, ["99 很好", "98 awful", "97 great"], prompt) == ["good", "bad", "good"]
    if method:
        names = load_file(tmp_path / "adapter_model.safetensors").keys()
        assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B"}  # nothing in the model is new


def test_no_examples_score_the_untouched_model(reviews_csv, tmp_path):
    metrics = train(ours(reviews_csv, few_shot=0, eval_file=str(reviews_csv), **WORDS), theirs(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))
    assert json.loads((tmp_path / "all_results.json").read_text()) == pytest.approx(metrics)
    tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    model = AutoModelForCausalLM.from_pretrained(bundled_checkpoint("tiny"), dtype=torch.float32)
    rows, prompt = reviews(), Prompt.load(tmp_path)
    texts = [row["review"] for row in rows]
    # The bias is the mean score of the training texts, which are those evaluated here.
    plain = score_labels(model, tokenizer, texts, Prompt(prompt.template, prompt.words))
    torch.testing.assert_close(torch.tensor(prompt.bias), plain.mean(0), atol=1e-3, rtol=1e-3)
    predicted = predict_labels(model, tokenizer, texts, prompt)
    accuracy = sum(label == row["stars"] for label, row in zip(predicted, rows, strict=True)) / len(rows)
    assert metrics["eval_accuracy"] == pytest.approx(accuracy)

    uncalibrated = ours(reviews_csv, few_shot=0, eval_file=str(reviews_csv), calibrate=False, **WORDS)
    train(uncalibrated, theirs(tmp_path / "plain"))
    assert Prompt.load(tmp_path / "plain").bias is None


def test_accumulated_batches_equal_one(reviews_csv, tmp_path):
    weights = []
    for size, steps in ((4, 1), (1, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        train(
            ours(reviews_csv, few_shot=4, calibrate=False, eval_fraction=0, **WORDS),
            theirs(tmp_path / str(size), max_steps=1, max_grad_norm=0, learning_rate=0.1, **settings),
        )
        weights.append(load_file(tmp_path / str(size) / "model.safetensors"))
    before = load_file(bundled_checkpoint("tiny") / "model.safetensors")
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(weight, before[name].float()) for name, weight in weights[0].items())


def test_a_loss_that_is_no_number_is_diagnosed(checkpoint, reviews_csv, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.model.norm.weight.data.fill_(1e5)
    model.lm_head.weight.data.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    arguments = ours(reviews_csv, model=str(tmp_path / "model"), few_shot=4, calibrate=False, **WORDS)
    with pytest.raises(NonFiniteLossError, match=r"lm_head \(Linear\) gives it from inputs that are finite"):
        train(arguments, theirs(tmp_path / "out"))


@pytest.mark.parametrize(
    ("texts", "labels", "template", "words"),
    [
        pytest.param(["很好"], ["Positive", "Negative"], "{text}总之很{label}", ["差", "好"], id="chinese"),
        pytest.param(
            ["fine"], ["pos", "neg"], "{text} All in all, it was {label}", ["terrible", "great"], id="english"
        ),
        pytest.param(["fine"], ["sports", "music"], "{text}\n{label}", ["music", "sports"], id="topics"),
    ],
)
def test_default_prompts(tmp_path, texts, labels, template, words):
    Dataset.from_dict({"review": texts * 4, "stars": labels * 2}).to_json(tmp_path / "x.jsonl")
    file = str(tmp_path / "x.jsonl")
    train(ours(file, eval_file=file, few_shot=0, calibrate=False), theirs(tmp_path / "out"))
    prompt = Prompt.load(tmp_path / "out")
    assert (prompt.template, list(prompt.words.values())) == (template, words)


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        pytest.param("ab", {"verbalizer": "a=x,c=y"}, "'c' is not among the labels: 'a', 'b'", id="unknown"),
        pytest.param("ab", {"verbalizer": "a=x"}, "label 'b' has no word; there are words for: 'a'", id="missing"),
        pytest.param("ab", {"verbalizer": "a=x,b=x"}, "'x' stands for 'a' and for 'b'", id="same"),
        pytest.param("01", {}, "labels 0, 1 say nothing .* --verbalizer 0=word,1=word", id="numbers"),
        pytest.param("ab", {"prompt_template": "no place"}, "must hold {text} once", id="template"),
        pytest.param("ab", {"few_shot": 10}, "takes 5 examples of each label, but 'a' has 4", id="rows"),
        pytest.param([0.5, 1.5], {}, "--few-shot scores one label .* regression", id="kind"),
        pytest.param("ab", {"eval_fraction": 0, "few_shot": 0}, "give rows to evaluate on", id="no-rows"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, labels, values, message):
    Dataset.from_dict({"review": ["text"] * 10, "stars": [*labels] * 5}).to_json(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=message):
        train(ours(tmp_path / "x.jsonl", **({"few_shot": 2} | values)), theirs(tmp_path / "out"))


def test_a_classifier_is_no_language_model(checkpoint, reviews_csv, tmp_path):
    labels = {"id2label": {0: "bad", 1: "good"}}
    AutoModelForSequenceClassification.from_pretrained(checkpoint, **labels).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--few-shot asks a language model, but .* is a classifier"):
        train(ours(reviews_csv, model=str(tmp_path), few_shot=2), theirs(tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--few-shot", "-1"], "--few-shot is -1", id="negative"),
        pytest.param(["--verbalizer", "a=x"], "are those of --few-shot, which is not given", id="no-few-shot"),
        pytest.param(["--few-shot", "4", "--verbalizer", "ax"], "'ax' is not of the form label=word", id="form"),
        pytest.param(["--few-shot", "4", "--verbalizer", "{a"], "--verbalizer: not valid JSON", id="json"),
        pytest.param(["--few-shot", "0", "--lora"], "--few-shot 0 trains nothing", id="zero-lora"),
        pytest.param(["--few-shot", "4", "--from-scratch"], "with --from-scratch it knows nothing", id="scratch"),
        pytest.param(["--few-shot", "4", "--problem-type", "regression"], "one label for each text", id="regression"),
        pytest.param(["--problem-type", "ranking"], "--problem-type is 'ranking'; it must be one of", id="kind"),
        pytest.param(["--pseudo-label-threshold", "0.3"], "must lie above 0.5", id="threshold"),
        pytest.param(["--label-separator", ""], "--label-separator is empty", id="separator"),
    ],
)
def test_arguments_that_contradict_each_other(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--task", "classify", "--train-file", "x.csv", *words])


def test_words_may_be_a_mapping_of_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "task: classify\ntrain_file: x.csv\nfew_shot: 4\nverbalizer: {0: 差, 1: 'a, b'}\n"
    )
    assert parse_arguments([str(tmp_path / "run.yaml")])[0].words() == {"0": "差", "1": "a, b"}


def test_changed_texts_are_what_the_prompt_asks_about(tmp_path):
    seen = []
    write_csv(tmp_path / "x.csv", reviews(8))
    arguments = ours(tmp_path / "x.csv", few_shot=4, eval_fraction=0, **WORDS)
    train_classifier(
        arguments, theirs(tmp_path / "out", num_train_epochs=2), augment=lambda text: seen.append(text) or text
    )
    assert len(seen) == 2 * 4
    assert set(seen) <= {row["review"] for row in reviews(8)}
