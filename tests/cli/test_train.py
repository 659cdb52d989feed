"""`baichuan-hf train`."""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.checkpoint import reviews, write_csv


@pytest.fixture(scope="module")
def reviews_csv(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", reviews())


def test_trains_from_words(run, checkpoint, reviews_csv, tmp_path):
    result = run(
        "train", "--task", "classify", "--model", checkpoint, "--train-file", reviews_csv, "--text-column", "review",
        "--label-column", "stars", "--output-dir", tmp_path, "--learning-rate", "5e-3", "--num-train-epochs", 4,
        "--use-cpu", "--save-strategy", "no",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_accuracy"] == 1.0
    assert "eval_accuracy            1.0000" in result.stdout


QUESTION = {"question": "谁？", "context": "李明来了", "answers": {"text": ["李明"], "answer_start": [0]}}


@pytest.mark.parametrize(
    ("task", "rows", "metric"),
    [
        pytest.param("tag", {"tokens": list("李明来"), "tags": ["B-PER", "I-PER", "O"]}, "eval_recall", id="tag"),
        pytest.param("qa", QUESTION, "eval_exact_match", id="qa"),
    ],
)
def test_trains_other_tasks(run, checkpoint, tmp_path, task, rows, metric):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(rows)] * 4))
    result = run(
        "train", "--task", task, "--model", checkpoint, "--train-file", file, "--eval-file", file, "--output-dir",
        tmp_path / "out", "--learning-rate", "5e-3", "--num-train-epochs", 20, "--use-cpu", "--save-strategy", "no",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f" {metric} " in result.stdout
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())[metric] == 1.0


def test_help_names_what_a_task_takes_besides_or_otherwise(run):
    text = run("train", "--help").stdout
    tag = text[text.index("--task tag") :]
    assert "[tokens]" in tag[: tag.index("──╯")]
    assert "--doc-stride" in text


def test_trains_from_yaml(run, checkpoint, reviews_csv, tmp_path):
    settings = f"""
        task: classify
        model: {checkpoint}
        train_file: {reviews_csv}
        text_column: review
        label_column: stars
        output_dir: {tmp_path / "out"}
        max_steps: 1
        use_cpu: true
        save_strategy: no
    """
    (tmp_path / "run.yaml").write_text(settings)
    result = run("train", tmp_path / "run.yaml", "--eval-fraction", "0.5")
    assert result.exit_code == 0, result.output
    assert "eval_majority_accuracy   0.5000" in result.stdout
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_help_shows_ours_first_then_the_commonest_of_transformers(run):
    text = run("train", "--help").stdout
    places = [text.index(f"│ --{name} ") for name in ("task", "train-file", "lora", "output-dir", "seed")]
    assert places == sorted(places)
    assert "--adam-beta1" not in text
    assert "--adam-beta1" in run("train", "--help-all").stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param(["--task", "classify"], 2, "required: --train_file", id="missing"),
        pytest.param(["--task", "classify", "--train-file", "x", "--epochs"], 2, "unknown argument", id="unknown"),
        pytest.param(["--task", "summarise", "--train-file", "x"], 2, "there is classify", id="task"),
        pytest.param(["absent.yaml"], 2, "absent.yaml", id="yaml"),
    ],
)
def test_wrong_words_are_one_line(run, words, code, message):
    result = run("train", *words)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_launch_configurations_are_found(run):
    path = run("train", "--launch-config", "fsdp2").stdout.strip()
    assert yaml.safe_load(Path(path).read_text())["distributed_type"] == "FSDP"
    unknown = run("train", "--launch-config", "zero9")
    assert unknown.exit_code == 1
    assert "there is ddp, deepspeed_zero2, deepspeed_zero3, fsdp2" in unknown.stderr


def test_context_parallelism_is_refused(run, monkeypatch):
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    result = run("train", "--task", "pretrain", "--train-file", "x.txt", "--use-cpu")
    assert result.exit_code == 1
    assert "context parallelism drops all masks" in result.stderr
