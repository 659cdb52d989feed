"""`baichuan-hf convert --to gguf`."""

import sys
from typing import get_args, get_type_hints

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from baichuan_hf import bundled_checkpoint
from baichuan_hf.cli.convert import convert
from baichuan_hf.conversion.to_gguf import Quantization


def test_the_bundled_checkpoint_by_the_command(run, tmp_path):
    pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")
    result = run("convert", bundled_checkpoint("tiny"), tmp_path, "--to", "gguf", "--quantize", "q8_0")
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.iterdir()
    assert "BaichuanForCausalLM -> GGUF, llama.cpp's llama: 7,892,224 parameters, Q8_0" in result.stdout
    assert f"Saved to {file} (9.5 MB): the model and the tokenizer" in result.stdout
    assert f"llama-cli -m {file}" in result.stdout
    assert file.stat().st_size < 0.61 * (bundled_checkpoint("tiny") / "model.safetensors").stat().st_size


def test_options_that_do_not_go_together(run, checkpoint, tmp_path):
    pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(target_modules=["W_pack"])).save_pretrained(tmp_path / "adapter")
    words = ["convert", checkpoint, tmp_path / "dst", "--to"]
    problems = {
        ("gguf", "--quantize", "q8_0", "--dtype", "float16"): "are both types of the matrices: give one",
        ("llama", "--quantize", "q8_0"): "--quantize q8_0 is for --to gguf, not for --to llama",
        ("gguf", "--max-shard-size", "1GB"): "--max-shard-size is for safetensors: GGUF is one file",
    }
    for more, message in problems.items():
        result = run(*words, *more)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (1, True), result.stderr
    result = run("convert", tmp_path / "adapter", tmp_path / "dst", "--to", "gguf", "--rank", 3)
    assert "--rank is for --to baichuan: in GGUF the rank stays as it is" in result.stderr
    assert not (tmp_path / "dst").exists()


def test_an_adapter_becomes_a_file_of_its_own(run, checkpoint, tmp_path):
    pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(r=3, target_modules=["W_pack"])).save_pretrained(tmp_path / "adapter")
    result = run("convert", tmp_path / "adapter", tmp_path / "mine.gguf", "--to", "gguf")
    assert result.exit_code == 0, result.output
    assert "Adapter -> GGUF, llama.cpp's llama: 2 modules, rank 3" in result.stdout
    assert f"llama-cli -m MODEL.gguf --lora {tmp_path}/mine.gguf" in result.stdout
    assert (tmp_path / "mine.gguf").is_file()


def test_missing_package_is_named(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = run("convert", checkpoint, tmp_path / "dst", "--to", "gguf")
    assert "pip install 'baichuan-hf[gguf]'" in result.stderr


def test_the_command_offers_what_the_function_takes():
    offered, _ = get_args(get_type_hints(convert)["quantize"])
    assert get_args(offered) == get_args(Quantization)
