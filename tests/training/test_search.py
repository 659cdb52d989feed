"""`--hp-search`: what it tries, writes and refuses, and that it survives being killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from baichuan_hf.training import parse_arguments, train
from tests.helpers import REPOSITORY


needs_optuna = pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="pip install 'baichuan-hf[optuna]'")
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="pip install 'baichuan-hf[ray]'")

SPACE = "learning_rate: {low: 1e-6, high: 1e-1, log: true}\nper_device_train_batch_size: [4, 8]\n"


@pytest.fixture
def words(checkpoint, reviews_csv, tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return [
        "--task", "classify", "--model", str(checkpoint), "--train-file", str(reviews_csv), "--text-column", "review",
        "--label-column", "stars", "--output-dir", str(tmp_path / "out"), "--max-steps", "6", "--use-cpu",
        "--disable-tqdm", "true", "--hp-space", str(tmp_path / "space.yaml"),
    ]  # fmt: skip


def finished(folder):
    """How many trials of the study came to an end."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not (folder / "study.log").exists():
        return 0
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    if not optuna.get_all_study_names(storage):
        return 0
    return sum(trial.state.is_finished() for trial in optuna.load_study(study_name="search", storage=storage).trials)


@needs_optuna
def test_optuna_finds_what_trains_best_and_goes_on(words, tmp_path):
    out = tmp_path / "out"
    train(*parse_arguments([*words, "--hp-search", "optuna", "--hp-trials", "2"]))
    assert finished(out) == 2
    metrics = train(*parse_arguments([*words, "--hp-search", "optuna", "--hp-trials", "5"]))
    assert finished(out) == 5
    best = yaml.safe_load((out / "best_arguments.yaml").read_text())
    assert 1e-6 <= best["learning_rate"] <= 1e-1
    assert best["per_device_train_batch_size"] in (4, 8)
    assert "hp_trials" not in best
    assert json.loads((out / "all_results.json").read_text()) == metrics
    assert not list(out.glob("**/checkpoint-*"))
    # The run of the best arguments ends where their trial ended.
    again = train(*parse_arguments([str(out / "best_arguments.yaml")]))
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    if importlib.util.find_spec("matplotlib"):
        assert (out / "trials.png").read_bytes().startswith(b"\x89PNG")


@needs_optuna
def test_the_measure_is_the_one_that_is_asked_for(words):
    options = ["--hp-search", "optuna", "--hp-trials", "2", "--metric-for-best-model", "accuracy"]
    metrics = train(*parse_arguments([*words, *options]))
    assert 0 <= metrics["eval_accuracy"] <= 1
    with pytest.raises(ValueError, match="--metric-for-best-model eval_bleu: there is eval_loss"):
        train(*parse_arguments([*words, *options[:-1], "bleu", "--hp-trials", "9"]))


@needs_optuna
def test_a_trial_that_diverges_is_left_out(words, tmp_path):
    (tmp_path / "space.yaml").write_text("learning_rate: [1e38, 1e-3]\nmax_grad_norm: [0.0]\n")
    train(*parse_arguments([*words, "--hp-search", "optuna", "--hp-trials", "6"]))
    assert yaml.safe_load((tmp_path / "out" / "best_arguments.yaml").read_text())["learning_rate"] == 1e-3


@needs_optuna
@pytest.mark.slow
def test_a_study_survives_a_kill(words, tmp_path):
    out = tmp_path / "out"
    options = [*words, "--hp-search", "optuna", "--hp-trials", "8"]
    command = [sys.executable, "-m", "baichuan_hf.cli.main", "train", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while finished(out) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = finished(out)
    assert 2 <= before < 8
    train(*parse_arguments(options))
    assert finished(out) == 8


@needs_ray
@pytest.mark.slow
def test_ray_finds_arguments(words, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    train(*parse_arguments([*words, "--hp-search", "ray", "--hp-trials", "2"]))
    best = yaml.safe_load((tmp_path / "out" / "best_arguments.yaml").read_text())
    assert 1e-6 <= best["learning_rate"] <= 1e-1
    assert json.loads(json.dumps(best))["per_device_train_batch_size"] in (4, 8)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        pytest.param("learning_rat: [1]", "'learning_rat' is none of .*; did you mean learning_rate", id="name"),
        pytest.param("learning_rate: 1e-3", "learning_rate is '1e-3'; give a list of values", id="scalar"),
        pytest.param("learning_rate: {low: 2, high: 1}", "a higher high", id="order"),
        pytest.param("learning_rate: {min: 2, max: 1}", "give a list of values, or low", id="keys"),
        pytest.param("just words", "expected lines of", id="no-mapping"),
        pytest.param("a: [b", "not valid YAML", id="syntax"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_named(words, tmp_path, monkeypatch, space, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(ValueError, match=message):
        train(*parse_arguments([*words, "--hp-search", "optuna"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param(["--hp-search", "grid"], ValueError, "there is optuna, ray", id="name"),
        pytest.param(["--hp-search", "ray"], ImportError, r"Ray Tune: pip install 'baichuan-hf\[ray\]'", id="absent"),
    ],
)
def test_a_search_that_cannot_be_is_refused(words, monkeypatch, options, error, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        train(*parse_arguments([*words, *options]))
