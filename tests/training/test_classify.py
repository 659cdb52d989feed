"""`train_classifier`: what it learns, writes, refuses, and goes on from."""

import json
import random

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer, pipeline

import baichuan_hf
from baichuan_hf.adapters.loading import load_adapted
from baichuan_hf.adapters.merging import merge_folder
from baichuan_hf.training import ClassifyArguments, train, train_classifier
from baichuan_hf.training.trainer import add_adapters
from tests.helpers import tiny_config
from tests.helpers.checkpoint import quiet_arguments, reviews, save_checkpoint, write_csv


def ours(train_file, **values):
    values = {"model": "micro", "text_column": "review", "label_column": "stars", "max_length": 16} | values
    return ClassifyArguments(task="classify", train_file=str(train_file), **values)


def theirs(folder, **values):
    defaults = {"num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    return quiet_arguments(folder, **(defaults | values))


METHODS = [pytest.param({}, id="full"), pytest.param({"lora": True, "lora_dropout": 0.1, "lora_r": 4}, id="lora")]


def test_full_fine_tuning_learns_and_writes_a_loadable_model(checkpoint, reviews_csv, tmp_path):
    metrics = train(ours(reviews_csv, model=str(checkpoint)), theirs(tmp_path))
    assert metrics["eval_accuracy"] == metrics["eval_f1_macro"] == 1.0
    assert metrics["eval_majority_accuracy"] == 0.5
    assert json.loads((tmp_path / "all_results.json").read_text()) == pytest.approx(metrics)
    assert (tmp_path / "trainer_state.json").is_file()
    assert "eval_accuracy" not in (tmp_path / "README.md").read_text()
    assert "| accuracy | 1.0 |" in (tmp_path / "README.md").read_text()

    classify = pipeline("text-classification", model=str(tmp_path))
    assert [answer["label"] for answer in classify(["99 很好", "98 awful", "97 great"])] == ["good", "bad", "good"]
    assert classify.model.dtype == torch.float32  # the bfloat16 of the file would lose small steps
    assert (tmp_path / "tokenizer.model").is_file()


def test_lora_trains_adapter_and_head_and_merges_to_the_same_model(checkpoint, reviews_csv, tmp_path):
    arguments = ours(reviews_csv, model=str(checkpoint), lora=True, lora_r=4, merge=True)
    metrics = train(arguments, theirs(tmp_path, num_train_epochs=8, learning_rate=1e-2))
    assert metrics["eval_accuracy"] == 1.0

    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B", "score"}
    assert all("W_pack" in name or "score" in name for name in names)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(40, 60)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    assert merged.config.id2label == {0: "bad", 1: "good"}
    base = load_file(checkpoint / "model.safetensors")["model.layers.0.self_attn.W_pack.weight"]
    assert not torch.equal(merged.model.layers[0].self_attn.W_pack.weight, base.float())


@pytest.mark.parametrize("encoder", [False, True], ids=["causal", "encoder"])
def test_an_adapter_is_loaded_with_its_labels_and_settings(checkpoint, tmp_path, encoder):
    """Neither three labels nor an encoder is what PEFT would make of the base model by itself."""
    rows = write_csv(tmp_path / "x.csv", [{"review": f"text {i}", "stars": "abc"[i % 3]} for i in range(12)])
    overrides = "is_causal=false" if encoder else None
    arguments = ours(rows, model=str(checkpoint), lora=True, merge=True, config_overrides=overrides, eval_fraction=0)
    train(arguments, theirs(tmp_path / "out", learning_rate=1e-2))
    adapted = load_adapted(tmp_path / "out", AutoModelForSequenceClassification, dtype=torch.float32)
    assert adapted.config.id2label == {0: "a", 1: "b", 2: "c"}
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "merged")
    ids = torch.arange(40, 60)[None]
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
    merge_folder(tmp_path / "out", tmp_path / "dst", dtype=torch.float32)
    later = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dst")
    assert later.config.to_diff_dict() == merged.config.to_diff_dict()
    torch.testing.assert_close(later.state_dict(), merged.state_dict())


def test_all_linear_adapts_every_projection(checkpoint, reviews_csv, tmp_path):
    arguments = ours(reviews_csv, model=str(checkpoint), lora=True, lora_target_modules=["all-linear"])
    train(arguments, theirs(tmp_path, max_steps=1))
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    adapted = {name.split(".")[-3] for name in names if "lora_A" in name}
    assert adapted == {"W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_from_scratch_ignores_the_weights(checkpoint, reviews_csv, tmp_path):
    arguments = ours(reviews_csv, model=str(checkpoint), from_scratch=True, eval_fraction=0)
    metrics = train(arguments, theirs(tmp_path, max_steps=1, learning_rate=0.0))
    trained, given = load_file(tmp_path / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert not torch.equal(trained["model.embed_tokens.weight"], given["model.embed_tokens.weight"].float())
    assert "eval_accuracy" not in metrics


def test_best_model_is_kept(checkpoint, reviews_csv, tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    # The rate is far too high for the later epochs to be the better ones.
    train(ours(reviews_csv, model=str(checkpoint)), theirs(tmp_path, learning_rate=0.3, **settings))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert state["best_global_step"] != state["global_step"]
    best = load_file(tmp_path / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    kept = load_file(tmp_path / "model.safetensors")
    assert min(losses, key=losses.get) == state["best_global_step"]
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_accumulated_batches_equal_one(checkpoint, reviews_csv, tmp_path):
    arguments, weights = ours(reviews_csv, model=str(checkpoint)), []
    for size, steps in ((4, 1), (1, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        train(arguments, theirs(tmp_path / str(size), max_steps=1, max_grad_norm=0, **settings))
        weights.append(load_file(tmp_path / str(size) / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_equals_uninterrupted(checkpoint, reviews_csv, tmp_path, monkeypatch, method):
    arguments = ours(reviews_csv, model=str(checkpoint), **method)
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    train(arguments, theirs(tmp_path / "whole", **settings))

    steps, training_step = [], Trainer.training_step

    def interrupted_step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 9:  # steps 7 and 8 are lost: the last checkpoint is that of step 6, within the first epoch
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        train(arguments, theirs(tmp_path / "parts", **settings))
    train(arguments, theirs(tmp_path / "parts", resume_from_checkpoint="true", **settings))
    assert len(steps) == 9 + 20 - 6

    file = "adapter_model.safetensors" if method else "model.safetensors"
    whole, parts = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, checkpoint, reviews_csv):
    """A checkpoint-1 of full fine-tuning, one of LoRA."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method in {"full": {}, "lora": {"lora": True}}.items():
        arguments = ours(reviews_csv, model=str(checkpoint), **method)
        train(arguments, theirs(folder / name, max_steps=1, save_strategy="steps", save_steps=1))
    return folder


@pytest.mark.parametrize(
    ("resume", "values", "message"),
    [
        pytest.param("true", {}, "there is no checkpoint-", id="none"),
        pytest.param(".", {}, "no trainer_state.json", id="no-checkpoint"),
        pytest.param("full/checkpoint-1", {"lora": True}, "holds no adapter; this run has --lora", id="full"),
        pytest.param("lora/checkpoint-1", {}, "holds no full model; this run trains all", id="lora"),
        pytest.param("lora/checkpoint-1", {"lora": True, "lora_r": 2}, r"lora_A.* \[16, 32\] there", id="rank"),
        pytest.param("full/checkpoint-1", {"model": "other"}, r"by another model .*\[5000, 32\] there", id="model"),
    ],
)
def test_foreign_checkpoint_is_refused(checkpoint, reviews_csv, two_runs, tmp_path, resume, values, message):
    values = {"model": str(checkpoint)} | values
    if values["model"] == "other":
        values["model"] = str(save_checkpoint(tmp_path / "other", hidden_size=64))
    resume = resume if resume == "true" else str(two_runs / resume)
    with pytest.raises(ValueError, match=message):
        train(ours(reviews_csv, **values), theirs(tmp_path / "out", resume_from_checkpoint=resume))


def test_output_of_another_method_is_not_mixed_in(reviews_csv, two_runs):
    with pytest.raises(ValueError, match=r"lora: holds an adapter of an earlier run \(adapter_config.json\)"):
        train(ours(reviews_csv), theirs(two_runs / "lora"))
    with pytest.raises(ValueError, match=r"full: holds a full model of an earlier run"):
        train(ours(reviews_csv, lora=True), theirs(two_runs / "full"))


def test_unknown_task_lists_those_there_are(reviews_csv, tmp_path):
    arguments = ours(reviews_csv)
    arguments.task = "translate"
    with pytest.raises(ValueError, match="--task 'translate': unknown; there is classify"):
        train(arguments, theirs(tmp_path))


def test_qlora_without_bitsandbytes_says_what_to_install(checkpoint, reviews_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("baichuan_hf.training.trainer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'baichuan-hf\[quantization\]'"):
        train_classifier(ours(reviews_csv, model=str(checkpoint), qlora=True), theirs(tmp_path))


def test_qlora_of_experts_is_refused():
    """bitsandbytes leaves their stacked matrices alone, and PEFT would make float32 of them."""
    model = baichuan_hf.BaichuanForSequenceClassification(tiny_config(num_local_experts=2))
    with pytest.raises(ValueError, match=r"experts.*gate_up_proj.*use --lora"):
        add_adapters(model, ours("x.csv", qlora=True), task_type="SEQ_CLS")


def test_qlora_trains_over_four_bits_and_merges_into_the_full_model(tmp_path, reviews_csv):
    pytest.importorskip("bitsandbytes")
    model = save_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64)
    arguments = ours(reviews_csv, model=str(model), qlora=True, merge=True)
    metrics = train(arguments, theirs(tmp_path / "out", learning_rate=1e-2))
    assert metrics["eval_accuracy"] == 1.0
    classify = pipeline("text-classification", model=str(tmp_path / "out" / "merged"))
    assert [answer["label"] for answer in classify(["99 很好", "98 awful"])] == ["good", "bad"]


@pytest.mark.parametrize("method", METHODS)
def test_several_labels_of_a_text(checkpoint, tmp_path, method):
    rows = [{"review": row["review"], "stars": f"{row['stars']}; text"} for row in reviews()]
    file = write_csv(tmp_path / "x.csv", [*rows, *({"review": f"{i} nothing", "stars": ""} for i in range(24))])
    values = {"problem_type": "multi_label_classification", "label_separator": ";", "merge": bool(method)}
    metrics = train(
        ours(file, model=str(checkpoint), **values, **method),
        theirs(tmp_path / "out", num_train_epochs=12, learning_rate=1e-2),
    )
    assert metrics["eval_f1_micro"] == metrics["eval_f1_macro"] == metrics["eval_subset_accuracy"] == 1.0
    classify = pipeline("text-classification", model=str(tmp_path / "out" / "merged" if method else tmp_path / "out"))
    assert classify.model.config.problem_type == "multi_label_classification"
    for text, expected in (("99 很好", {"good", "text"}), ("98 awful", {"bad", "text"}), ("97 nothing", set())):
        answers = classify(text, top_k=None)
        assert {answer["label"] for answer in answers} == {"good", "bad", "text"}
        assert {answer["label"] for answer in answers if answer["score"] > 0.5} == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_number_for_a_text(checkpoint, tmp_path, method):
    rows = [{"review": row["review"], "stars": 1.5 if row["stars"] == "good" else -0.5} for row in reviews()]
    file = write_csv(tmp_path / "x.csv", rows)
    metrics = train(
        ours(file, model=str(checkpoint), merge=bool(method), **method),
        theirs(tmp_path / "out", num_train_epochs=12, learning_rate=1e-2),
    )
    assert metrics["eval_mse"] < 0.1 < 0.9 < metrics["eval_mean_mse"]
    assert metrics["eval_pearson"] > 0.95
    assert metrics["eval_mae"] ** 2 <= metrics["eval_mse"]
    assert metrics["eval_spearman"] > 0.8
    classify = pipeline("text-classification", model=str(tmp_path / "out" / "merged" if method else tmp_path / "out"))
    assert classify.model.config.problem_type == "regression"
    good, bad = classify(["99 很好", "98 awful"])
    assert good["label"] == bad["label"] == "stars"
    assert (good["score"], bad["score"]) == pytest.approx((1.5, -0.5), abs=0.5)


def test_texts_change_anew_in_each_epoch_and_in_training_only(checkpoint, tmp_path):
    file, eval_file = write_csv(tmp_path / "x.csv", reviews(8)), write_csv(tmp_path / "y.csv", reviews(24)[8:])
    seen = []

    def stamp(text):
        seen.append(f"{text} {random.random()}")
        return seen[-1]

    arguments = ours(file, model=str(checkpoint), eval_file=str(eval_file), augment=["swap"])
    settings = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 1}
    train_classifier(arguments, theirs(tmp_path / "whole", **settings), augment=stamp)
    assert len(set(seen)) == len(seen) == 2 * 8
    shown = {"".join(sorted(text.rpartition(" ")[0])) for text in seen}
    assert shown == {"".join(sorted(row["review"])) for row in reviews(8)}

    # A run that is resumed within an epoch sees what the whole one saw.
    last_steps = sorted(seen[4:])
    seen.clear()
    checkpoint_1 = str(tmp_path / "whole" / "checkpoint-1")
    train_classifier(
        arguments, theirs(tmp_path / "parts", resume_from_checkpoint=checkpoint_1, **settings), augment=stamp
    )
    assert sorted(seen)[-12:] == last_steps
    whole, parts = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_cut_texts_are_reported(tmp_path, caplog):
    model = save_checkpoint(tmp_path / "model", max_position_embeddings=8)
    rows = [{"review": "很好 " * (9 * (i == 0) + 1), "stars": i % 2} for i in range(10)]
    values = {"model": str(model), "eval_fraction": 0, "max_length": 100}
    train(ours(write_csv(tmp_path / "x.csv", rows), **values), theirs(tmp_path / "out", max_steps=1))
    assert "x.csv: 1 of 10 texts are cut to 8 tokens, --max-length or the most that the model takes" in caplog.text
