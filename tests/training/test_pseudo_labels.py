"""`--unlabeled-file`: what a first model is sure of teaches a second one."""

import json

import pytest
from datasets import Dataset
from transformers import pipeline
from transformers.trainer_utils import get_last_checkpoint

from baichuan_hf.training import ClassifyArguments, train, train_classifier
from tests.helpers.checkpoint import quiet_arguments, reviews, write_csv


def ours(folder, **values):
    defaults = {"model": "tiny", "text_column": "review", "label_column": "stars", "max_length": 16}
    files = {"eval_file": str(folder / "eval.csv"), "unlabeled_file": str(folder / "more.csv")}
    return ClassifyArguments(task="classify", train_file=str(folder / "train.csv"), **(defaults | files | values))


def theirs(folder, **values):
    defaults = {"num_train_epochs": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    return quiet_arguments(folder, **(defaults | values))


@pytest.fixture
def files(tmp_path):
    """16 labelled rows, 8 to evaluate on, and 40 others of which some are the former's, empty or repeated."""
    rows = reviews(56)
    write_csv(tmp_path / "train.csv", rows[:16])
    write_csv(tmp_path / "eval.csv", rows[16:24])
    texts = [row["review"] for row in rows[12:]]
    write_csv(tmp_path / "more.csv", [{"id": 0, "review": text} for text in [*texts, texts[-1], " "]])
    return tmp_path


def taken(folder):
    return [json.loads(line) for line in (folder / "pseudo_labels.jsonl").read_text("utf-8").splitlines()]


def test_sure_labels_are_learnt_from_and_counted(files, checkpoint, caplog):
    seen = set()
    metrics = train_classifier(
        ours(files, model=str(checkpoint), pseudo_label_threshold=0.6),
        theirs(files / "out", train_sampling_strategy="group_by_length"),  # which would shuffle what is labelled
        augment=lambda text: seen.add(text) or text,
    )
    assert metrics["eval_accuracy"] == 1.0
    assert "14 of 46 rows are empty, repeated, or among the labelled ones: left out" in caplog.text
    rows = taken(files / "out")
    truth = {row["review"]: row["stars"] for row in reviews(56)[24:]}
    assert 16 <= len(rows) <= 32
    assert all(truth[row["text"]] == row["label"] and 0.6 <= row["probability"] <= 1 for row in rows)
    counts = {name: sum(row["label"] == name for row in rows) for name in ("bad", "good")}
    message = f"{len(rows)} of 32 texts are labelled with a probability of --pseudo-label-threshold 0.6 or more"
    assert f"{message}: bad {counts['bad']}, good {counts['good']}; the highest" in caplog.text
    # Both are trained on, and nothing that is evaluated on.
    assert seen == {row["review"] for row in reviews(16)} | {row["text"] for row in rows}


def test_none_that_is_sure_enough_leaves_the_labelled_ones(files, checkpoint, caplog):
    arguments = ours(files, model=str(checkpoint), pseudo_label_threshold=1.0)
    train(arguments, theirs(files / "out", max_steps=1))
    assert taken(files / "out") == []
    assert "0 of 32 texts are labelled with a probability of --pseudo-label-threshold 1 or more: bad 0" in caplog.text


def test_a_resumed_run_reads_what_was_labelled(files, checkpoint, caplog):
    arguments = ours(files, model=str(checkpoint), pseudo_label_threshold=0.6)
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch", "num_train_epochs": 2}
    train(arguments, theirs(files / "out", **settings))
    before = (files / "out" / "pseudo_labels.jsonl").read_bytes()
    caplog.clear()
    train(arguments, theirs(files / "out", resume_from_checkpoint="true", **settings))
    assert (files / "out" / "pseudo_labels.jsonl").read_bytes() == before
    assert "are labelled with" not in caplog.text


def test_several_labels(checkpoint, tmp_path):
    rows = {"review": [row["review"] for row in reviews(40)], "stars": [[row["stars"], "text"] for row in reviews(40)]}
    Dataset.from_dict(rows).to_json(tmp_path / "train.jsonl")
    write_csv(tmp_path / "more.csv", [{"review": row["review"]} for row in reviews(60)])
    values = {"eval_file": None, "train_file": str(tmp_path / "train.jsonl"), "pseudo_label_threshold": 0.7}
    arguments = ClassifyArguments(**(vars(ours(tmp_path, model=str(checkpoint))) | values))
    metrics = train(arguments, theirs(tmp_path / "out", num_train_epochs=8, save_strategy="epoch"))
    assert metrics["eval_subset_accuracy"] == 1.0
    found = taken(tmp_path / "out")
    truth = {row["review"]: {row["stars"], "text"} for row in reviews(60)}
    assert found
    assert all(set(row["label"]) == truth[row["text"]] for row in found)
    teacher = pipeline("text-classification", model=get_last_checkpoint(tmp_path / "out" / "teacher"), top_k=None)
    for row, answers in zip(found, teacher([row["text"] for row in found]), strict=True):
        surest = (max(answer["score"], 1 - answer["score"]) for answer in answers)
        assert row["probability"] == pytest.approx(min(surest), abs=1e-3)


def test_a_prompted_model_labels_as_well(files):
    arguments = ours(
        files, few_shot=8, prompt_template="{text} {label}", verbalizer="good=yes,bad=no", pseudo_label_threshold=0.6
    )
    metrics = train(arguments, theirs(files / "out", learning_rate=1e-3))
    assert metrics["eval_accuracy"] == 1.0
    assert len(taken(files / "out")) > 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"problem_type": "regression"}, "which regression does not give", id="regression"),
        pytest.param({"unlabeled_file": "train.csv"}, "holds no text that is not known already", id="known"),
        pytest.param(
            {"unlabeled_file": "bare.csv"},
            "bare.csv: --text-column 'review' is not a column; there are 'a'",
            id="column",
        ),
    ],
)
def test_what_cannot_be_labelled_is_refused(checkpoint, tmp_path, values, message):
    write_csv(tmp_path / "train.csv", [{"review": f"text {i}", "stars": i % 2} for i in range(8)])
    write_csv(tmp_path / "bare.csv", [{"a": "1", "b": "2"}])
    values = {"unlabeled_file": "bare.csv"} | values
    values["unlabeled_file"] = str(tmp_path / values["unlabeled_file"])
    with pytest.raises(ValueError, match=message):
        train(ours(tmp_path, model=str(checkpoint), eval_file=None, **values), theirs(tmp_path / "out"))
