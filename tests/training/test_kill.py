"""A run that is killed goes on as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from baichuan_hf.training import parse_arguments, train
from tests.helpers import REPOSITORY


STEPS = 12


@pytest.fixture
def words(checkpoint, reviews_csv, tmp_path):
    def words(folder):
        return [
            "--task", "classify", "--model", str(checkpoint), "--train-file", str(reviews_csv), "--text-column",
            "review", "--label-column", "stars", "--output-dir", str(tmp_path / folder), "--max-steps", str(STEPS),
            "--save-steps", "1", "--use-cpu", "--disable-tqdm", "true", "--learning-rate", "1e-3",
            "--config-overrides", "hidden_dropout=0.1",
        ]  # fmt: skip

    return words


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_killed_twice_and_resumed_equals_uninterrupted(words, tmp_path):
    train(*parse_arguments(words("whole")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "baichuan_hf.cli.main", "train", *words("killed")]
    for number in (3, 7):
        resume = ["--resume-from-checkpoint", "true"] if (tmp_path / "killed" / "checkpoint-1").exists() else []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*command, *resume], env=environment, **quiet) as process:
            # Some moment in or after the saving of this checkpoint.
            while not (tmp_path / "killed" / f"checkpoint-{number}").exists():
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "killed" / f"checkpoint-{STEPS}").exists()
    train(*parse_arguments([*words("killed"), "--resume-from-checkpoint", "true"]))
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(killed[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_checkpoint_that_was_being_saved_is_passed_over(words, tmp_path, damage):
    train(*parse_arguments(words("out")))
    whole = weights(tmp_path / "out")
    state = tmp_path / "out" / f"checkpoint-{STEPS}" / "trainer_state.json"
    if damage == "cut":
        state.write_text(state.read_text()[:100])
    else:
        state.unlink()
    (state.parent / "model.safetensors").write_bytes(b"")
    shutil.rmtree(tmp_path / "out" / f"checkpoint-{STEPS - 1}")
    train(*parse_arguments([*words("out"), "--resume-from-checkpoint", "true"]))
    resumed = weights(tmp_path / "out")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
