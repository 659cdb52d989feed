"""Baichuan folders into Baichuan folders: files, dtype, vocabulary, a merged adapter."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.conversion.baichuan_folders import convert_baichuan_folder
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.checkpoint import save_checkpoint
from tests.helpers.golden import GOLDEN_FAMILIES, load_golden


IDS = torch.arange(3, 60).reshape(3, 19)


def save_model(folder, **overrides):
    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config(initializer_range=0.2, **overrides)).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def logits(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)(IDS).logits


@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_pickled_shards_become_safetensors(name, tmp_path):
    source = load_golden(name).checkpoint
    done = convert_baichuan_folder(source, tmp_path / "dst", to="baichuan", max_shard_size="300KB")
    assert done.left_out == []
    assert len(list((tmp_path / "dst").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "dst"), logits(source))
    assert not [path for path in (tmp_path / "dst").iterdir() if path.suffix in (".bin", ".py")]


def test_old_pickles_are_read_too(tmp_path):
    """Those of before torch 1.6, which cannot be mapped."""
    model = save_model(tmp_path / "src")
    torch.save(model.state_dict(), tmp_path / "src" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "src" / "model.safetensors").unlink()
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "dst"), model(IDS).logits)


def test_pickled_code_is_not_run(tmp_path):
    save_model(tmp_path / "src")
    (tmp_path / "src" / "model.safetensors").unlink()

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model.norm.weight": Harmful()}, tmp_path / "src" / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"pytorch_model\.bin .* Get the weights as safetensors"):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan")
    assert not (tmp_path / "ran").exists()


def test_dtype(tmp_path):
    model = save_model(tmp_path / "src")
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan", dtype=torch.bfloat16)
    assert done.dtype == torch.bfloat16
    for name, weight in load_file(tmp_path / "dst" / "model.safetensors").items():
        assert torch.equal(weight, model.state_dict()[name].to(torch.bfloat16))
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("to", ["baichuan", "llama"])
@pytest.mark.parametrize("family", ["rope", "rope-normhead"])
def test_vocabulary_padded_and_trimmed(family, to, tmp_path):
    before = save_model(tmp_path / "src", **FAMILIES[family])
    convert_baichuan_folder(tmp_path / "src", tmp_path / "wide", to=to, vocab_size=192)
    convert_baichuan_folder(tmp_path / "src", tmp_path / "narrow", to=to, vocab_size=100)
    with torch.no_grad():
        expected = before(IDS).logits
    wide, narrow = logits(tmp_path / "wide"), logits(tmp_path / "narrow")
    torch.testing.assert_close(wide[..., :128], expected, atol=1e-5, rtol=0)
    assert torch.equal(wide.argmax(-1), wide[..., :128].argmax(-1))
    torch.testing.assert_close(narrow, expected[..., :100], atol=1e-5, rtol=0)


def test_rows_that_the_config_does_not_know_of(tmp_path):
    """125,697 rows under a vocab_size of 125,696, say."""
    model = save_model(tmp_path / "src")
    file = tmp_path / "src" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 127}))
    message = r"is \(128, 64\) in the files, but \(127, 64\) .* Give --vocab-size 128"
    with pytest.raises(ValueError, match=message):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan")
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan", vocab_size=128)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "dst"), model(IDS).logits)


def test_rows_that_the_tokenizer_needs_are_not_cut(tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    words = len(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(ValueError, match=rf"the tokenizer has the id {words - 1}: give at least {words}"):
        convert_baichuan_folder(folder, tmp_path / "dst", to="baichuan", vocab_size=words - 1)
    with pytest.raises(ValueError, match="eos_token_id has the id 2: give at least 3"):
        save_model(tmp_path / "bare")
        convert_baichuan_folder(tmp_path / "bare", tmp_path / "dst", to="baichuan", vocab_size=2)
    convert_baichuan_folder(folder, tmp_path / "dst", to="baichuan", vocab_size=words)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "dst")) == words


def save_adapter(folder, base, **options):
    torch.manual_seed(1)
    options = {"target_modules": ["W_pack", "down_proj", "lm_head"], "init_lora_weights": False} | options
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, **options))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(("family", "to"), [("rope-normhead", "llama"), ("alibi", "baichuan"), ("gqa", "llama")])
def test_adapter_is_merged(family, to, tmp_path):
    save_model(tmp_path / "src", **FAMILIES[family])
    targets = {"gqa": ["q_proj", "v_proj"], "alibi": ["W_pack", "lm_head"]}.get(family, ["W_pack", "down_proj"])
    save_adapter(tmp_path / "adapter", tmp_path / "src", target_modules=targets)
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to=to, adapter=tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "src"), tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(IDS).logits
    torch.testing.assert_close(logits(tmp_path / "dst"), expected, atol=1e-4, rtol=0)
    assert (logits(tmp_path / "src") - expected).abs().max() > 0.1


def test_adapter_of_a_norm_head_cannot_be_merged(tmp_path):
    save_model(tmp_path / "src", normalize_lm_head=True)
    save_adapter(tmp_path / "adapter", tmp_path / "src")
    with pytest.raises(ValueError, match=r"adapts lm_head, which is a NormHead"):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama", adapter=tmp_path / "adapter")


def test_adapter_of_another_base_is_refused(tmp_path):
    save_model(tmp_path / "src")
    save_model(tmp_path / "other", hidden_size=32)
    save_adapter(tmp_path / "adapter", tmp_path / "other")
    with pytest.raises(ValueError, match="does not go with .* of another model: .*size mismatch"):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan", adapter=tmp_path / "adapter")


def test_missing_weights_and_full_disks_are_seen_before_anything_is_written(tmp_path, monkeypatch):
    save_model(tmp_path / "src")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(OSError, match=r"0\.0 GB free, the weights need"):
            convert_baichuan_folder(tmp_path / "src", tmp_path / "full", to="llama")
    assert list((tmp_path / "full").iterdir()) == []
    file = tmp_path / "src" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(OSError, match=r"lacks \d+ weights of LlamaForCausalLM, first model\.layers\.2\."):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    assert not (tmp_path / "dst").exists()


def test_quantised_folders_are_refused(tmp_path):
    save_model(tmp_path / "src")
    file = tmp_path / "src" / "config.json"
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match=r"is quantised \(gptq\): convert the model that it was made from"):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")


def test_what_a_killed_conversion_has_left_is_removed(tmp_path):
    save_model(tmp_path / "src")
    left = tmp_path / "dst" / ".saving-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    assert {path.name for path in (tmp_path / "dst").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors")
    }
