"""`train_tagger`: what it learns, writes, refuses, and the numbers it gives."""

import json
import random

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Sequence as ListOf
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoTokenizer

from baichuan_hf.training import train
from baichuan_hf.training.tasks.tag import TagArguments, load_tagged_sentences, predict_tags, tagging_metrics
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint, write_csv


NAMES = {"PER": ["李明", "𪚥生"], "LOC": ["北京", "上海"]}


def sentences(count=64, *, seed=0):
    """Characters between which names stand, one of them with a character that takes four pieces."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(generator.randint(1, 3)):
            tokens += (filler := generator.choices("的了在看", k=generator.randint(1, 3)))
            tags += ["O"] * len(filler)
            kind = generator.choice(list(NAMES))
            tokens += generator.choice(NAMES[kind])
            tags += [f"B-{kind}", f"I-{kind}"]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def write_conll(path, rows):
    blocks = ["".join(f"{t}\t{tag}\n" for t, tag in zip(row["tokens"], row["tags"], strict=True)) for row in rows]
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def conll(tmp_path_factory):
    return write_conll(tmp_path_factory.mktemp("data") / "names.conll", sentences())


def ours(train_file, **values):
    return TagArguments(task="tag", train_file=str(train_file), **({"model": "micro", "max_length": 64} | values))


def theirs(folder, **values):
    defaults = {"num_train_epochs": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    return quiet_arguments(folder, **(defaults | values))


def test_full_fine_tuning_learns_and_writes_a_loadable_model(checkpoint, conll, tmp_path):
    metrics = train(ours(conll, model=str(checkpoint)), theirs(tmp_path))
    assert metrics["eval_f1"] == metrics["eval_precision"] == metrics["eval_recall"] == metrics["eval_accuracy"] == 1.0
    assert json.loads((tmp_path / "all_results.json").read_text()) == pytest.approx(metrics)
    assert "| f1 | 1.0 |" in (tmp_path / "README.md").read_text()

    model = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert model.config.id2label == dict(enumerate(["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]))
    new = [row["tokens"] for row in sentences(20, seed=1)]
    tags = predict_tags(model, AutoTokenizer.from_pretrained(tmp_path), [*new, ["", "李", "明"], [""], []])
    assert tags == [*(row["tags"] for row in sentences(20, seed=1)), ["O", "B-PER", "I-PER"], ["O"], []]


def test_rows_of_an_evaluation_stay_in_order(checkpoint, conll, tmp_path):
    metrics = train(ours(conll, model=str(checkpoint)), theirs(tmp_path, train_sampling_strategy="group_by_length"))
    assert metrics["eval_f1"] == 1.0


def test_an_encoder_reads_what_a_causal_model_cannot_know(checkpoint, tmp_path):
    """Whether 甲 is a name is told by the last character alone."""
    rows = [
        {"tokens": list("甲" + "的" * (index % 3) + last), "tags": [tag, *["O"] * (index % 3 + 1)]}
        for index in range(36)
        for last, tag in (("人", "S-PER"), ("地", "S-LOC"))
    ]
    file = write_conll(tmp_path / "x.conll", rows)
    f1 = {}
    for causal in ("true", "false"):
        arguments = ours(file, model=str(checkpoint), config_overrides=f"is_causal={causal}")
        f1[causal] = train(arguments, theirs(tmp_path / causal, num_train_epochs=10))["eval_f1"]
        assert json.loads((tmp_path / causal / "config.json").read_text())["is_causal"] is (causal == "true")
    assert f1["false"] == 1.0
    assert f1["true"] < 0.8


def test_lora_trains_adapter_and_head_and_merges(checkpoint, conll, tmp_path):
    method = {"lora": True, "lora_target_modules": ["all-linear"], "merge": True}
    arguments = ours(conll, model=str(checkpoint), config_overrides="is_causal=false", **method)
    metrics = train(arguments, theirs(tmp_path, num_train_epochs=12))
    assert metrics["eval_f1"] > 0.95
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B", "score"}
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.is_causal is False
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    rows = sentences(20, seed=1)
    tags = predict_tags(merged, tokenizer, [row["tokens"] for row in rows])
    assert tagging_metrics([row["tags"] for row in rows], tags)["f1"] > 0.95


def test_qlora_trains_over_four_bits_and_merges_into_the_full_model(conll, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = save_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64)
    arguments = ours(conll, model=str(model), qlora=True, merge=True, lora_target_modules=["all-linear"])
    assert train(arguments, theirs(tmp_path / "out", num_train_epochs=12))["eval_f1"] > 0.95
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "out" / "merged")
    tags = predict_tags(merged, AutoTokenizer.from_pretrained(model), [list("了李明的上海")])
    assert tags == [["O", "B-PER", "I-PER", "O", "B-LOC", "I-LOC"]]


def test_from_scratch_and_resume(conll, tmp_path):
    sizes = "hidden_size=32,intermediate_size=32,num_hidden_layers=1,num_attention_heads=2"
    arguments = ours(conll, model="tiny", from_scratch=True, eval_fraction=0, config_overrides=sizes)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(arguments, theirs(tmp_path / "whole", **settings))
    resume = str(tmp_path / "whole" / "checkpoint-2")
    train(arguments, theirs(tmp_path / "parts", resume_from_checkpoint=resume, **settings))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_accumulated_batches_equal_one(checkpoint, tmp_path):
    row = {"tokens": ["李", "明"], "tags": ["B-PER", "I-PER"]}
    file = write_conll(tmp_path / "x.conll", [row] * 8)
    weights = []
    for size, steps in ((4, 1), (1, 4)):
        arguments = ours(file, model=str(checkpoint), eval_fraction=0)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        train(arguments, theirs(tmp_path / str(size), max_steps=1, max_grad_norm=0, **settings))
        weights.append(load_file(tmp_path / str(size) / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "csv-lists"])
def test_tables_have_list_columns(tmp_path, kind):
    rows = [{"words": ["李 ", "5"], "ner": ["B-PER", "O"]}, {"words": ["好"], "ner": ["O"]}]
    if kind == "csv":
        rows[0]["words"] = ["李", "5"]  # there a space divides
        file = write_csv(tmp_path / "x.csv", [{name: " ".join(row[name]) for name in row} for row in rows])
    elif kind == "csv-lists":
        file = write_csv(tmp_path / "x.csv", rows)
    else:
        file = tmp_path / f"x.{kind}"
        getattr(Dataset.from_list(rows), "to_parquet" if kind == "parquet" else "to_json")(file)
    arguments = ours(file, text_column="words", label_column="ner", from_scratch=True, eval_fraction=0)
    splits, names = load_tagged_sentences(arguments)
    assert list(splits["train"]) == [{"words": row["words"], "tags": row["ner"]} for row in rows]
    assert names == ["B-PER", "O"]


def test_names_of_a_data_set_or_a_tagger_are_kept(checkpoint, tmp_path):
    features = Features({"tokens": ListOf(Value("string")), "tags": ListOf(ClassLabel(names=["O", "B-X", "I-X"]))})
    rows = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "tags": [[1, 2], [0]]}, features=features)
    rows.to_parquet(tmp_path / "x.parquet")
    splits, names = load_tagged_sentences(ours(tmp_path / "x.parquet", from_scratch=True, eval_fraction=0))
    assert names == ["O", "B-X", "I-X"]
    assert splits["train"]["tags"][:] == [["B-X", "I-X"], ["O"]]

    labels = {"id2label": {0: "B-Y", 1: "O"}, "label2id": {"B-Y": 0, "O": 1}}
    AutoModelForTokenClassification.from_pretrained(checkpoint, **labels).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="tag 'B-X' is not among those to learn: 'B-Y', 'O'"):
        load_tagged_sentences(ours(tmp_path / "x.parquet", model=str(tmp_path / "model")))


def test_cut_and_empty_sentences_are_reported_and_missed_words_count(checkpoint, tmp_path, caplog):
    row = {"tokens": list("在北京"), "tags": ["O", "B-LOC", "I-LOC"]}
    long = {"tokens": list("的" * 10 + "北京"), "tags": ["O"] * 10 + ["B-LOC", "I-LOC"]}
    train_file = write_conll(tmp_path / "train.conll", [row] * 8)
    Dataset.from_list([row, long, {"tokens": [], "tags": []}]).to_parquet(tmp_path / "eval.parquet")
    arguments = ours(
        train_file, model=str(checkpoint), eval_file=str(tmp_path / "eval.parquet"), max_length=8, lora=True
    )
    metrics = train(arguments, theirs(tmp_path / "out", num_train_epochs=20))
    assert "eval.parquet: 1 of 3 rows have no words: left out" in caplog.text
    assert "eval.parquet: 1 of 2 sentences lose words, 4 in all, that --max-length 8 cuts off" in caplog.text
    assert (metrics["eval_precision"], metrics["eval_recall"]) == (1.0, 0.5)
    assert metrics["eval_accuracy"] == pytest.approx(13 / 15)


def test_metrics_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    generator = random.Random(0)
    names = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B"]
    tags, predicted = ([generator.choices(names, k=1 + row % 9) for row in range(50)] for _ in range(2))
    metrics = tagging_metrics(tags, predicted)
    theirs = {name: getattr(seqeval, f"{name}_score")(tags, predicted) for name in ("precision", "recall", "f1")}
    assert metrics == pytest.approx(theirs | {"accuracy": seqeval.accuracy_score(tags, predicted)})
    assert 0 < metrics["f1"] < 1


def test_tags_that_mark_no_entities_have_accuracy_alone():
    assert tagging_metrics([["NN", "VB"]], [["NN", "NN"]]) == {"accuracy": 0.5}
    assert tagging_metrics([["O"]], [["O"]]) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("rows", "evaluation", "message"),
    [
        pytest.param({"words": [["a"]], "tags": [["O"]]}, None, "--text-column 'tokens' .* 'words'", id="text"),
        pytest.param({"tokens": [["a"]], "ner": [["O"]]}, None, "--label-column 'tags' is not", id="label"),
        pytest.param({"tokens": [[], [""]], "tags": [[], ["O"]]}, None, "none of 2 rows has words", id="empty"),
        pytest.param({"tokens": [["a"]], "tags": [["O", "O"]]}, None, "row 1 has 1 words, but 2 tags", id="length"),
        pytest.param({"tokens": [["a"]], "tags": [5]}, None, "'tags' holds 5; --task tag wants a list", id="number"),
        pytest.param({"tokens": [["a"]], "tags": [["O"]]}, None, "every tag is 'O'", id="one-tag"),
        pytest.param(
            {"tokens": [["a", "b"]], "tags": [["O", "B-X"]]},
            {"tokens": [["c"]], "tags": [["B-Y"]]},
            "eval.jsonl: tag 'B-Y' is not among those to learn: 'B-X', 'O'",
            id="unseen",
        ),
        pytest.param(
            {"tokens": [["a", "b"]], "tags": [["O", "B-X"]]}, None, "of 1 rows leaves none to train on", id="few"
        ),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(tmp_path, rows, evaluation, message):
    Dataset.from_dict(rows).to_json(tmp_path / "x.jsonl")
    values = {}
    if evaluation:
        Dataset.from_dict(evaluation).to_json(tmp_path / "eval.jsonl")
        values["eval_file"] = str(tmp_path / "eval.jsonl")
    with pytest.raises(ValueError, match=message):
        load_tagged_sentences(ours(tmp_path / "x.jsonl", from_scratch=True, **values))
