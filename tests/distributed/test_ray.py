"""A task by two workers of a local Ray against one process."""

import json
import os

import pytest

from baichuan_hf.training import parse_arguments, train, train_on_ray
from tests.helpers import REPOSITORY
from tests.helpers.checkpoint import reviews, save_checkpoint, write_csv


@pytest.mark.slow
def test_two_workers_equal_one_process(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="pip install 'baichuan-hf[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    words = [
        "--task", "classify", "--model", str(save_checkpoint(tmp_path / "model")), "--train-file",
        str(write_csv(tmp_path / "reviews.csv", reviews())), "--text-column", "review", "--label-column", "stars",
        "--max-steps", "4", "--save-strategy", "no", "--logging-steps", "1", "--use-cpu", "--disable-tqdm", "true",
        "--learning-rate", "1e-2",
    ]  # fmt: skip
    one = [*words, "--output-dir", str(tmp_path / "one"), "--per-device-train-batch-size", "4"]
    train(*parse_arguments(one))
    two = [*words, "--output-dir", str(tmp_path / "two"), "--per-device-train-batch-size", "2"]
    train_on_ray(two, num_workers=2, use_gpu=False)
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("one", "two")]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert json.loads((tmp_path / "two" / "all_results.json").read_text())["eval_accuracy"] == 1.0


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'baichuan-hf\[ray\]'"):
        train_on_ray([], num_workers=2)
