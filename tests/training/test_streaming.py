"""`--streaming`: rows that are read while training."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from baichuan_hf.training import parse_arguments, train


def write_rows(folder, task):
    """More rows than a step needs, no two equal."""
    if task == "sft":
        rows = [{"instruction": f"Say {number}.", "output": f"It is {number}. " * 3} for number in range(60)]
    else:
        rows = [{"text": f"{number} cats and {number} dogs " * 4} for number in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder / "rows.jsonl"


@pytest.fixture
def words(checkpoint, tmp_path):
    def words(task, *more):
        return [
            "--task", task, "--model", str(checkpoint), "--train-file", str(write_rows(tmp_path, task)),
            "--output-dir", str(tmp_path / "out"), "--max-length", "16", "--use-cpu", "--disable-tqdm", "true",
            "--per-device-train-batch-size", "4", "--learning-rate", "5e-3", "--logging-steps", "1", *more,
        ]  # fmt: skip

    return words


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("task", ["pretrain", "mlm", "sft"])
def test_a_stream_is_learnt_from(words, tmp_path, task):
    rows = write_rows(tmp_path, task)
    metrics = train(
        *parse_arguments(
            words(task, "--streaming", "--eval-file", str(rows), "--max-steps", "20", "--max-length", "32")
        )
    )
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0] - 0.5
    assert metrics["eval_loss"] < losses(tmp_path / "out")[0]


def test_without_shuffling_the_rows_are_those_of_memory(words, tmp_path):
    """A buffer of one row leaves the order as it is; in memory the sampler is made to."""
    steps = ["--max-steps", "3", "--eval-fraction", "0"]
    train(*parse_arguments(words("pretrain", *steps, "--streaming", "--shuffle-buffer", "1")))
    streamed = losses(tmp_path / "out")
    train(*parse_arguments(words("pretrain", *steps, "--train-sampling-strategy", "sequential")))
    assert losses(tmp_path / "out") == pytest.approx(streamed, rel=1e-5)


def test_resumed_equals_uninterrupted(words, tmp_path):
    options = ["--streaming", "--eval-fraction", "0", "--max-steps", "6", "--save-steps", "3", "--shuffle-buffer", "9"]
    train(*parse_arguments(words("sft", *options)))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    train(*parse_arguments(words("sft", *options, "--resume-from-checkpoint", "true")))
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_memory_is_tokenized_by_many_processes(words, tmp_path):
    train(*parse_arguments(words("sft", "--max-steps", "2", "--preprocessing-num-workers", "2")))
    by_two = losses(tmp_path / "out")
    train(*parse_arguments(words("sft", "--max-steps", "2")))
    assert losses(tmp_path / "out") == by_two


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        pytest.param("sft", [], "--streaming needs --max-steps", id="steps"),
        pytest.param("sft", ["--max-steps", "2"], "give --eval-file, or --eval-fraction 0", id="fraction"),
        pytest.param(
            "classify", ["--max-steps", "2"], "--streaming is for mlm, pretrain, sft: --task classify", id="task"
        ),
        pytest.param(
            "pretrain",
            ["--max-steps", "2", "--eval-fraction", "0", "--text-column", "body"],
            "'body' is not a column; there are 'text'",
            id="column",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(words, task, options, message):
    with pytest.raises(ValueError, match=message):
        train(*parse_arguments(words(task, "--streaming", *options)))
