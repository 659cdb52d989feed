"""--qat: what is trained in four bits is what is loaded in four bits."""

import importlib.util
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf.training import LanguageModelArguments, train
from baichuan_hf.training.quantization_aware import prepare_quantization, quantization_config
from baichuan_hf.training.tasks.language_model import load_texts, pack_texts
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"), initializer_range=0.2, intermediate_size=64)


def ours(tmp_path, checkpoint, **values):
    file = tmp_path / "x.txt"
    file.write_text("\n\n".join(["天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。"] * 20), encoding="utf-8")
    return LanguageModelArguments(
        task="pretrain", train_file=str(file), eval_file=str(file), max_length=16, model=str(checkpoint), **values
    )


def test_what_is_trained_is_what_is_loaded_in_four_bits(checkpoint, tmp_path):
    pytest.importorskip("torchao")
    losses = {}
    for qat in (True, False):
        arguments = ours(tmp_path, checkpoint, qat=qat)
        settings = {"max_steps": 20, "learning_rate": 3e-3, "per_device_train_batch_size": 4}
        losses[qat] = train(arguments, quiet_arguments(tmp_path / str(qat), **settings))["eval_loss"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "True")
    rows = pack_texts(load_texts(arguments)["test"], tokenizer, 16).with_format("torch")

    def loss(folder, **options):
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        batch = rows[:]
        with torch.no_grad():
            return float(model(**{name: batch[name] for name in ("input_ids", "labels", "position_ids")}).loss)

    four_bits = {"quantization_config": quantization_config(32)}
    assert loss(tmp_path / "True", **four_bits) == pytest.approx(losses[True], rel=1e-4)
    assert loss(tmp_path / "False") == pytest.approx(losses[False], rel=1e-4)
    # Trained so, the weights lose less by being rounded.
    lost = {qat: loss(tmp_path / str(qat), **four_bits) - loss(tmp_path / str(qat)) for qat in (True, False)}
    assert lost[True] < lost[False]


def test_group_that_does_not_divide_is_refused(checkpoint):
    pytest.importorskip("torchao")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"--qat-group-size 48 does not divide the 32 inputs of layers.0.self_attn"):
        prepare_quantization(model, group_size=48)


def test_missing_torchao_is_named(checkpoint, tmp_path, monkeypatch):
    arguments = ours(tmp_path, checkpoint, qat=True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else find_spec(name, *a)
    )
    with pytest.raises(ImportError, match=re.escape("pip install 'baichuan-hf[torchao]'")):
        train(arguments, quiet_arguments(tmp_path / "out", max_steps=1))


def test_adapters_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--qat is about weights that are trained"):
        ours(tmp_path, checkpoint, qat=True, lora=True)
