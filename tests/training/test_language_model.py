"""`--task pretrain` and `--task sft`: packing, labels, and runs from end to end."""

import json

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorWithFlattening

from baichuan_hf import BaichuanForCausalLM, BaichuanTokenizer, bundled_checkpoint
from baichuan_hf.training import train
from baichuan_hf.training.tasks import find_task
from baichuan_hf.training.tasks.language_model import encode_chats, pack_texts
from tests.helpers import tiny_config
from tests.helpers.checkpoint import quiet_arguments


TEXTS = [
    "春天来了，花开了。",
    "The cat sat on the mat.",
    "一",
    "In the beginning was the word, and the word was long.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))


def ours(task, train_file, **values):
    values = {"max_length": 24, "eval_fraction": 0.25} | values
    return find_task(task).arguments(task=task, train_file=str(train_file), **values)


def theirs(folder, **values):
    defaults = {"max_steps": 30, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    return quiet_arguments(folder, **(defaults | values))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{number} cats and {number} dogs\n{number} 只猫" for number in range(60)), "utf-8")
    return path


@pytest.fixture
def chat_file(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(40)]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8), length=st.integers(2, 30))
def test_packing_keeps_every_token_once_and_texts_apart(texts, length):
    tokenizer = BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    rows = pack_texts(Dataset.from_dict({"text": texts}), tokenizer, length)
    streams = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    stream = [token for ids in streams for token in ids]
    assert [token for row in rows["input_ids"] for token in row] == stream[: len(stream) // length * length]
    starts = {sum(map(len, streams[:index])) for index in range(len(streams))}
    for number, row in enumerate(rows):
        for column in range(length):
            place = number * length + column
            begins = column == 0 or place in starts
            assert row["position_ids"][column] == (0 if begins else row["position_ids"][column - 1] + 1)
            assert row["labels"][column] == (-100 if place in starts else row["input_ids"][column])


@pytest.mark.parametrize("positions", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("how", ["blocks", "flattened"])
def test_packed_texts_give_the_loss_and_gradients_of_each_alone(tokenizer, positions, how):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), position_embedding_type=positions, initializer_range=0.2)
    model = BaichuanForCausalLM(config).train()
    streams = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    if how == "blocks":
        length = sum(map(len, streams))
        (row,) = pack_texts(Dataset.from_dict({"text": TEXTS}), tokenizer, length).with_format("torch")
        packed = {name: values[None] for name, values in row.items()}
    else:
        packed = DataCollatorWithFlattening()([{"input_ids": ids} for ids in streams])
    results = []
    for batches in ([packed], [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])} for ids in streams]):
        model.zero_grad()
        loss = sum(model(**batch, num_items_in_batch=50, skip_logits=True).loss for batch in batches)
        loss.backward()
        results.append((loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_pretrain_learns_and_continues(text_file, tmp_path):
    metrics = train(ours("pretrain", text_file), theirs(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_perplexity"] == pytest.approx(2.718281828 ** results["eval_loss"])
    evaluation = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert evaluation.keys() >= {"eval_loss", "eval_perplexity"}
    arguments = ours("pretrain", text_file, model=str(tmp_path / "out"))
    again = train(arguments, theirs(tmp_path / "more", learning_rate=5e-4))
    assert again["eval_loss"] < metrics["eval_loss"] < 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    inputs = tokenizer("3 cats and", return_tensors="pt")
    assert "dogs" in tokenizer.decode(model.generate(**inputs, max_new_tokens=6, do_sample=False)[0])


def test_from_scratch_takes_a_preset(text_file, tmp_path):
    overrides = "num_hidden_layers=1,vocab_size=6208"
    arguments = ours("pretrain", text_file, model="tiny", from_scratch=True, config_overrides=overrides)
    metrics = train(arguments, theirs(tmp_path / "out", max_steps=5))
    assert metrics["eval_loss"] < 9
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert (config.num_hidden_layers, config.vocab_size) == (1, 6208)


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
def test_without_logits_the_run_is_the_same(chat_file, tmp_path, smoothing):
    losses = []
    for full_logits in (True, False):
        options = {"max_steps": 3, "label_smoothing_factor": smoothing, "per_device_train_batch_size": 1}
        arguments = ours("sft", chat_file, full_logits=full_logits, config_overrides="z_loss_weight=0.0")
        metrics = train(arguments, theirs(tmp_path / str(full_logits), **options))
        losses.append((metrics["train_loss"], metrics["eval_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_lora_chat_tuning_merges(chat_file, tmp_path, packing):
    arguments = ours("sft", chat_file, lora=True, merge=True, packing=packing)
    metrics = train(arguments, theirs(tmp_path, max_steps=60, learning_rate=1e-2))
    assert metrics["eval_loss"] < 1.5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say 5."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).startswith("It is") and answer[-1] == tokenizer.eos_token_id


def test_long_and_silent_conversations_are_reported(tokenizer, caplog):
    rows = Dataset.from_list(
        [{"instruction": "Say it.", "output": "yes " * 50}, {"instruction": "why " * 50, "output": "no"}]
    )
    encoded = encode_chats(rows, tokenizer, ours("sft", "x.json"), "x.json")
    assert [len(ids) for ids in encoded["input_ids"]] == [24]
    assert "x.json: 2 of 2 conversations are cut to --max-length 24 tokens; 1 in which" in caplog.text


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        pytest.param("pretrain", "x.txt", "\n \n", "holds no text|no text", id="empty"),
        pytest.param("pretrain", "x.txt", "短", "of 1 rows leaves none to train on", id="one-row"),
        pytest.param(
            "pretrain", "x.jsonl", '{"body": "a"}\n', "'text' is not a column; there are 'body'", id="column"
        ),
        pytest.param(
            "sft", "x.jsonl", '{"body": "a"}\n{"body": "b"}\n', "no conversation in a row with 'body'", id="rows"
        ),
        pytest.param("pretrain", "x.jsonl", '{"text": "a"}\n{"text": "b', "x.jsonl: cannot be read", id="cut-off"),
    ],
)
def test_bad_files(tmp_path, task, name, content, message):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message):
        train(ours(task, tmp_path / name), theirs(tmp_path / "out"))


def test_texts_shorter_than_a_row(tmp_path):
    (tmp_path / "x.txt").write_text("a\n\nb\n\nc\n\nd", "utf-8")
    with pytest.raises(ValueError, match="fewer than --max-length 24 tokens"):
        train(ours("pretrain", tmp_path / "x.txt"), theirs(tmp_path / "out"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "hiden_dropout=0.1",
            r"--config-overrides: 'hiden_dropout' is no field .* \(did you mean 'hidden_dropout'\?\)",
        ),
        ("hidden_size=32", "is .* by its config"),
    ],
)
def test_overrides_that_the_model_does_not_take(text_file, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(ours("pretrain", text_file, config_overrides=overrides), theirs(tmp_path / "out", max_steps=1))


def test_rows_longer_than_the_models_positions_are_named(text_file, tmp_path, caplog):
    arguments = ours("pretrain", text_file, config_overrides="max_position_embeddings=16")
    train(arguments, theirs(tmp_path / "out", max_steps=1))
    assert "--max-length 24 is more than the 16 positions that tiny was made for" in caplog.text
