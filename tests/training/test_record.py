"""A run's arguments are kept; what a resumed run changes is named, and checkpoints of another run are refused."""

import logging
import shutil

import pytest
import yaml

from baichuan_hf.training import parse_arguments, train
from tests.helpers.checkpoint import reviews, write_csv


@pytest.fixture
def words(checkpoint, reviews_csv, tmp_path):
    """A command line of four steps that saves checkpoints at two and four."""
    return [
        "--task", "classify", "--model", str(checkpoint), "--train-file", str(reviews_csv), "--text-column", "review",
        "--label-column", "stars", "--output-dir", str(tmp_path / "out"), "--max-steps", "4", "--save-steps", "2",
        "--use-cpu", "--disable-tqdm", "true", "--learning-rate", "1e-3", "--lr-scheduler-type", "cosine",
    ]  # fmt: skip


def test_a_run_is_repeated_from_what_it_wrote(words, tmp_path):
    metrics = train(*parse_arguments(words))
    written = tmp_path / "out" / "arguments.yaml"
    assert (
        yaml.safe_load(written.read_text()).items() >= {"learning_rate": 1e-3, "lr_scheduler_type": "cosine"}.items()
    )
    again = train(*parse_arguments([str(written), "--output-dir", str(tmp_path / "again")]))
    assert again["eval_loss"] == metrics["eval_loss"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param(["--logging-steps", "1"], None, id="harmless"),
        pytest.param(["--warmup-steps", "2"], "warmup_steps unset -> 2", id="transformers"),
        pytest.param(["--learning-rate", "2e-3"], "learning_rate 0.001 -> 0.002 (without effect", id="optimiser"),
        pytest.param(["--max-length", "9"], "max_length unset -> 9", id="ours"),
        pytest.param("data", "the content of", id="data"),
    ],
)
def test_what_a_resumed_run_changes_is_named(words, tmp_path, caplog, changes, named):
    data = write_csv(tmp_path / "data.csv", reviews())
    words = [*words, "--train-file", str(data)]
    train(*parse_arguments(words))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    if changes == "data":
        write_csv(data, reviews(40))
        changes = []
    with caplog.at_level(logging.WARNING, "baichuan_hf"):
        train(*parse_arguments([*words, *changes, "--resume-from-checkpoint", "true"]))
    assert named in caplog.text if named else "other arguments" not in caplog.text


def test_a_run_that_begins_anew_says_so_and_is_the_one_that_goes_on(words, tmp_path, caplog):
    train(*parse_arguments(words))
    with caplog.at_level(logging.WARNING, "baichuan_hf"):
        train(*parse_arguments([*words, "--max-steps", "2"]))
    assert "holds checkpoint-4 of a run before. This one begins anew" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "baichuan_hf"):
        train(*parse_arguments([*words, "--max-steps", "3", "--resume-from-checkpoint", "true"]))
    assert "checkpoint-2 was saved by a run with other arguments" in caplog.text
    assert "max_steps 2 -> 3" in caplog.text


def test_checkpoints_of_another_run_are_refused(words, tmp_path):
    train(*parse_arguments(words))
    other = write_csv(tmp_path / "other.csv", reviews(40))
    with pytest.raises(ValueError, match=r"checkpoints of another run \(checkpoint-4, --train-file .*other.csv\)"):
        train(*parse_arguments([*words, "--train-file", str(other)]))
    (tmp_path / "out" / "arguments.yaml").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4, without arguments.yaml\); give another folder"):
        train(*parse_arguments(words))


def test_a_model_that_no_training_saved_is_not_overwritten(words, checkpoint):
    with pytest.raises(ValueError, match="holds a model that no training has saved"):
        train(*parse_arguments([*words, "--output-dir", str(checkpoint)]))
