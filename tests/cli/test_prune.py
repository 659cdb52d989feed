"""`baichuan-hf prune`."""

import re

import pytest
from transformers import AutoConfig, AutoTokenizer

from tests.helpers.checkpoint import reviews, write_csv


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data") / "x.csv", reviews(24))


def test_shows_size_and_loss_before_and_after(run, checkpoint, texts, tmp_path):
    result = run(
        "prune", checkpoint, tmp_path / "small", "--layers", 1, "--heads", 3, "--sparsity", 0.5, "--text-file", texts,
        "--text-column", "review",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = AutoConfig.from_pretrained(tmp_path / "small")
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (1, 3, 8)
    before, after = (int(number.replace(",", "")) for number in re.findall(r"[\d,]{5,}", result.stdout)[:2])
    assert after < before
    assert re.search(r"zeros in linear layers +0\.0% +50\.0%", result.stdout)
    assert re.search(r"loss +\d\.\d{4} +\d\.\d{4}", result.stdout)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "small")("一二")["input_ids"]) > 1


def test_without_texts_layers_are_spread(run, checkpoint, tmp_path):
    result = run("prune", checkpoint, tmp_path / "small", "--layers", 1)
    assert result.exit_code == 0, result.output
    assert "loss" not in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([], "give --layers, --heads, --sparsity or --pattern", id="nothing"),
        pytest.param(["--heads", 1], "--heads needs --text-file", id="heads"),
        pytest.param(["--layers", 3], "3 of 2 layers cannot be kept", id="layers"),
        pytest.param(["--layers", 1, "--text-file", "x.csv"], "x.csv: no such file", id="file"),
    ],
)
def test_wrong_words_are_refused(run, checkpoint, tmp_path, words, message):
    result = run("prune", checkpoint, tmp_path / "small", *words)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "small").exists()


def test_a_model_is_not_overwritten(run, checkpoint):
    result = run("prune", checkpoint, checkpoint, "--layers", 1)
    assert f"{checkpoint} holds a model already" in result.stderr
