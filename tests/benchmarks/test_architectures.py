"""Learning comparison: what is trained, that it is not trained twice, and what the rows say."""

import math

import numpy as np
import pytest
import torch

from baichuan_hf.benchmarks import architectures
from baichuan_hf.benchmarks.architectures import Run, companion, compare, missing_runs, select_variants
from baichuan_hf.benchmarks.learning import Learner, batches, read_corpus
from baichuan_hf.benchmarks.report import architecture_table, draw_architectures, length_table, rate_table, summarize
from baichuan_hf.benchmarks.rows import append_rows, read_rows
from baichuan_hf.benchmarks.variants import build_config


CPU = torch.device("cpu")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(text_file, settings):
    return read_corpus([text_file], settings)


@pytest.fixture(scope="module")
def rows(corpus, settings, tmp_path_factory):
    """A finished comparison of norms, which was cut after its first run."""
    path = tmp_path_factory.mktemp("rows") / "architectures.csv"
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(architectures, "STEPS_PER_ROUND", 1)
    finished = []

    def interrupt(line):
        finished.append(line)
        if len(finished) == 2:  # the first line says what is timed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(path, corpus, settings, axes=["norm"], rounds=1, device=CPU, report=interrupt)
    assert len(read_rows(path)) == 1
    lines = []
    assert (
        compare(path, corpus, settings, axes=["norm"], rounds=1, device=CPU, report=lines.append, command="again")
        == []
    )
    assert len(lines) == 5  # of six runs
    monkeypatch.undo()
    return path


def test_an_interrupted_comparison_goes_on_and_a_finished_one_ends_at_once(rows, corpus, settings):
    runs = [(row["variant"], row["learning_rate"], row["seed"]) for row in read_rows(rows)]
    assert len(runs) == len(set(runs)) == 6
    assert [row["command"] for row in read_rows(rows)] == ["", *["again"] * 5]
    before = rows.read_text()
    compare(rows, corpus, settings, axes=["norm"], device=CPU, report=pytest.fail)
    more_seeds = architectures.replace(settings, seeds=3)
    assert [run.seed for run in missing_runs(["baseline"], more_seeds, read_rows(rows))] == [2]
    assert rows.read_text() == before


def test_other_settings_do_not_mix(rows, corpus, settings):
    other = architectures.replace(settings, steps=4)
    with pytest.raises(ValueError, match="holds runs of other settings: name another file"):
        compare(rows, corpus, other, axes=["norm"], device=CPU)


def test_the_summary_is_that_of_the_rows(rows):
    baseline, layer_norm = summarize(rows)
    assert (baseline.axis, baseline.name, layer_norm.name) == ("norm", "rms_norm", "layer_norm")
    assert layer_norm.parameters == baseline.parameters
    found = [row for row in read_rows(rows) if row["variant"] == "norm: layer_norm"]
    rates = {float(row["learning_rate"]): float(row["bits_per_byte"]) for row in found if row["seed"] == "0"}
    assert layer_norm.bits_by_rate == rates
    assert layer_norm.learning_rate == min(rates, key=rates.get)
    chosen = [float(row["bits_per_byte"]) for row in found if float(row["learning_rate"]) == layer_norm.learning_rate]
    assert layer_norm.bits == tuple(chosen)
    assert layer_norm.mean == pytest.approx(np.mean(chosen))
    assert layer_norm.spread == pytest.approx(np.std(chosen, ddof=1))
    assert layer_norm.step_time > 0
    assert math.isnan(baseline.step_time)
    assert architecture_table([baseline, layer_norm]).row_count == 3
    assert rate_table([baseline, layer_norm]).row_count == 3
    assert length_table([baseline, layer_norm]).row_count == 0


def test_the_picture_is_drawn(rows, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'baichuan-hf[bench]'")
    draw_architectures(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_hold_every_run(rows, settings):
    points = read_rows(companion(rows, "curves"))
    assert {row["step"] for row in points} == {str(settings.steps)}
    assert len(points) == 6


def test_diverged_rates_are_not_chosen(settings):
    def row(rate, bits):
        return {"variant": "a", "learning_rate": str(rate), "seed": "0", "bits_per_byte": bits}

    tried = [row(1e-3, "2.5"), row(1e-2, "nan")]
    assert list(missing_runs(["a", "b"], settings, tried)) == [
        Run("a", 1e-3, 1),
        Run("b", 1e-3, 0),
        Run("b", 1e-2, 0),
    ]


def test_a_run_that_fails_is_reported_and_the_others_go_on(corpus, settings, tmp_path, monkeypatch):
    real = architectures.build_config

    def broken(settings, variant):
        config = real(settings, variant)
        if variant.name == "layer_norm":
            config.vocab_size = 7  # below the tokens' ids
        return config

    monkeypatch.setattr(architectures, "build_config", broken)
    failed = compare(tmp_path / "x.csv", corpus, settings, axes=["norm"], rounds=0, device=CPU, report=lambda _: None)
    assert len(failed) == 2
    assert all("norm: layer_norm" in line and "vocab_size" in line for line in failed)
    assert {row["variant"] for row in read_rows(tmp_path / "x.csv")} == {"baseline"}


def test_unknown_axis_lists_those_there_are(settings):
    with pytest.raises(ValueError, match="--axis 'nrm': unknown; there are norm, norm position"):
        select_variants(settings, ["nrm"])


def test_held_out_text_is_not_learnt(text_file, settings, corpus):
    assert corpus.train.shape[1] == settings.length
    assert corpus.held_out.shape[1] == 8 * settings.length
    train = corpus.train.tobytes()
    assert not any(window.tobytes() in train for window in corpus.held_out)
    size = len(text_file.read_bytes())
    tokens = corpus.train.size + corpus.held_out.size
    assert corpus.bytes_per_token == pytest.approx(size / tokens, rel=0.05)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        pytest.param(None, FileNotFoundError, "--train-file .*: no such file", id="absent"),
        pytest.param("short", ValueError, "too little text: 0 blocks of 8 tokens", id="short"),
    ],
)
def test_text_that_does_not_do_is_refused(tmp_path, settings, text, error, message):
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        read_corpus([path], settings)


def test_batches_are_the_same_for_every_model_of_a_seed(corpus, settings):
    first = batches(corpus, settings, 0, CPU)
    assert first.shape == (settings.steps, settings.batch_size, settings.length)
    assert torch.equal(first, batches(corpus, settings, 0, CPU))
    assert not torch.equal(first, batches(corpus, settings, 1, CPU))
    long = architectures.replace(settings, steps=len(corpus.train))
    counts = np.unique(batches(corpus, long, 0, CPU).flatten(0, 1).numpy(), axis=0, return_counts=True)[1]
    assert counts.min() >= settings.batch_size  # every block once per pass over the text


def test_bits_per_byte_are_those_of_the_models_own_loss(corpus, settings):
    config = build_config(settings, next(iter(select_variants(settings, ["norm"]).values())))
    learner = Learner(config, settings, learning_rate=0.0, seed=0, device=CPU)
    rows = torch.from_numpy(corpus.held_out.astype(np.int64)).view(-1, settings.length)
    loss = learner.model(input_ids=rows, labels=rows).loss.item()
    expected = loss / math.log(2) / corpus.bytes_per_token
    assert learner.bits_per_byte(corpus, settings.length) == pytest.approx(expected, rel=1e-5)


def test_a_learner_learns(corpus, settings):
    config = build_config(settings, next(iter(select_variants(settings, ["norm"]).values())))
    longer = architectures.replace(settings, steps=30)
    learner = Learner(config, longer, learning_rate=1e-2, seed=0, device=CPU)
    losses = [learner.step(batch).item() for batch in batches(corpus, longer, 0, CPU)]
    assert losses[0] == pytest.approx(math.log(config.vocab_size), abs=0.3)
    assert losses[-1] < losses[0] - 2
    assert learner.scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_steps_equal_plain_ones(corpus, settings):
    config = build_config(settings, next(iter(select_variants(settings, ["norm"]).values())))
    longer = architectures.replace(settings, steps=20)
    losses = []
    for captures in (False, True):
        learner = Learner(config, longer, learning_rate=1e-3, seed=0, device=torch.device("cuda"))
        learner.captures = captures
        losses.append([learner.step(batch).item() for batch in batches(corpus, longer, 0, learner.device)])
    assert losses[1] == pytest.approx(losses[0], abs=2e-2)


def test_files_of_other_columns_are_refused(tmp_path):
    append_rows(tmp_path / "x.csv", [{"a": 1, "b": "x, y"}])
    append_rows(tmp_path / "x.csv", [{"a": 2, "b": ""}])
    assert read_rows(tmp_path / "x.csv") == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    with pytest.raises(ValueError, match=r"x.csv: holds other columns \(a, b\): name another file"):
        append_rows(tmp_path / "x.csv", [{"a": 1, "c": 2}])
