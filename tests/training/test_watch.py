"""A loss that is no number stops the run and names its origin; a finished run has a picture."""

import re

import pytest
import torch

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.training import ClassifyArguments, train_classifier
from baichuan_hf.training.plot import plot_history
from baichuan_hf.training.watch import NonFiniteLossError, first_non_finite
from tests.helpers import tiny_config
from tests.helpers.checkpoint import quiet_arguments


def run(checkpoint, reviews_csv, folder, **values):
    arguments = ClassifyArguments(
        "classify", str(reviews_csv), str(checkpoint), text_column="review", label_column="stars"
    )
    return train_classifier(arguments, quiet_arguments(folder, **({"max_steps": 4, "logging_steps": 1} | values)))


def test_a_run_that_diverges_stops(checkpoint, reviews_csv, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step [1-4]: .*smaller --learning-rate"):
        run(checkpoint, reviews_csv, tmp_path, learning_rate=1e38, max_grad_norm=0.0, max_steps=20)


def test_a_finished_run_has_a_picture(checkpoint, reviews_csv, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'baichuan-hf[bench]'")
    run(checkpoint, reviews_csv, tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plot_history([{"step": 1, "loss": 2.0}], tmp_path / "loss.png")
    assert "pip install 'baichuan-hf[bench]'" in caplog.text
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("weight", r"the weight model\.layers\.1\.mlp\.down_proj\.weight is no number"),
        ("overflow", r"model\.layers\.1\.mlp\.down_proj \(Linear\) gives it from inputs that are finite"),
        ("nothing", "every module gives finite numbers"),
    ],
)
def test_the_first_tensor_is_named(damage, name):
    model = BaichuanForCausalLM(tiny_config())
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        if damage == "weight":
            weight[0, 0] = torch.nan
        elif damage == "overflow":
            weight.fill_(1e38)
            model.model.layers[1].mlp.up_proj.weight.fill_(1e3)
    found = first_non_finite(model, {"input_ids": torch.arange(3, 12)[None], "attention_mask": torch.ones(1, 9)})
    assert re.search(name, found), found
