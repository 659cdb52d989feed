"""A loss that is no number stops the run and names its origin; a finished run has a picture."""

import re

import pytest
import torch
from transformers import Trainer

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.training import ClassifyArguments, train_classifier
from baichuan_hf.training.plot import plot_history
from baichuan_hf.training.watch import NonFiniteLossError, first_non_finite, watch_loss
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


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_a_gradient_that_overflows_stops_the_run_before_the_weights_are_lost(packed, tmp_path):
    """Deep models meet it where a text begins with the token whose embedding is zero."""
    ids = torch.arange(3, 19)
    row = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(8).repeat(2)}
    row = {**row, "input_ids": ids.clone()} if packed else {"input_ids": ids.clone(), "labels": ids}
    row["input_ids"][8 if packed else 0] = 0
    model = BaichuanForCausalLM(tiny_config(num_hidden_layers=32))
    trainer = Trainer(model, quiet_arguments(tmp_path, max_steps=2), train_dataset=[row] * 8)
    watch_loss(trainer)
    message = r"gradients of \d+ weights, .* at step 0.* 8 texts .*\(pad_token_id 0\)"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train()
    assert all(weight.isfinite().all() for weight in model.parameters())


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
