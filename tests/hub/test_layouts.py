"""The three layouts of `save_pretrained`, each loaded by those it is for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

import baichuan_hf
from baichuan_hf import BaichuanForCausalLM, BaichuanForImageClassification, BaichuanForMaskedLM, save_layout
from baichuan_hf.model.modeling_baichuan import AUTO_CLASSES
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint


IDS = torch.arange(5, 25)[None]
TEXT = "你好，<reserved_106> world 2026"
# What cannot be made of a causal language model, with the settings that it needs.
ENCODERS = {
    "AutoModelForMaskedLM": (BaichuanForMaskedLM, {"is_causal": False}),
    "AutoModelForImageClassification": (
        BaichuanForImageClassification,
        {"is_causal": False, "image_size": 16, "patch_size": 8, "position_embedding_type": "learned"},
    ),
}


@pytest.fixture(scope="module", params=["rope-normhead", "alibi"])
def source(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_checkpoint(folder, **FAMILIES[request.param])
    return folder


def load(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


def without_the_package(code: str, folder: Path) -> None:
    """Run `code` in `folder`, in a process in which `baichuan_hf` cannot be imported."""
    blocked = "import sys\nsys.modules['baichuan_hf'] = None\n"
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", blocked + code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


REMOTE = f"""
import json, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

expected, text = torch.load("expected.pt"), {TEXT!r}
options = {{"trust_remote_code": True}}

def check(folder):
    assert "transformers_modules" in type(AutoConfig.from_pretrained(folder, **options)).__module__
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    assert "transformers_modules" in type(tokenizer).__module__
    assert tokenizer(text)["input_ids"] == expected["ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input"]).logits, expected["logits"], atol=0, rtol=0)
    return model, tokenizer

model, tokenizer = check("saved")
generated = model.generate(expected["input"], max_new_tokens=4, do_sample=False)
assert generated.tolist() == expected["generated"]
try:
    model.save_pretrained("other", layout="baichuan")
except ValueError as error:
    assert "pip install baichuan-hf" in str(error)
else:
    raise AssertionError("it can be written without the package?")
model.save_pretrained("again", max_shard_size="20KB")
tokenizer.save_pretrained("again")
check("again")

auto_map = json.load(open("again/config.json"))["auto_map"]
for auto in auto_map:
    if auto != "AutoConfig":
        folder = auto if auto in {list(ENCODERS)!r} else "again"
        model = getattr(transformers, auto).from_pretrained(folder, **options)
        assert type(model).__name__ == auto_map[auto].partition(".")[2], auto
        assert "transformers_modules" in type(model).__module__
"""


def test_remote_code_loads_saves_and_loads_without_the_package(source, tmp_path):
    model, tokenizer = load(source)
    model.save_pretrained(tmp_path / "saved", layout="remote_code", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "saved", layout="remote_code")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", *AUTO_CLASSES}
    for auto, (model_class, settings) in ENCODERS.items():
        model_class(tiny_config(**settings)).save_pretrained(tmp_path / auto, layout="remote_code")
    generated = model.generate(IDS, max_new_tokens=4, do_sample=False).tolist()
    expected = {"input": IDS, "logits": logits(model), "ids": tokenizer(TEXT)["input_ids"], "generated": generated}
    torch.save(expected, tmp_path / "expected.pt")
    without_the_package(REMOTE, tmp_path)


def test_with_the_package_nothing_in_the_folder_is_run(source, tmp_path):
    model, tokenizer = load(source)
    model.save_pretrained(tmp_path / "saved", layout="remote_code")
    tokenizer.save_pretrained(tmp_path / "saved", layout="remote_code")
    for file in (tmp_path / "saved").glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + file.read_text())
    for trust in (True, False, None):
        for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
            loaded = getattr(transformers, auto).from_pretrained(tmp_path / "saved", trust_remote_code=trust)
            assert type(loaded) is AUTO_CLASSES[auto]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=trust)
        assert type(tokenizer) is baichuan_hf.BaichuanTokenizer
    assert not (tmp_path / "ran").exists()
    loaded.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.py"))
    assert not any("auto_map" in file.read_text() for file in (tmp_path / "again").glob("*config.json"))


@pytest.mark.parametrize("family", ["rope", "rope-normhead", "gqa-normhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_llama_layout_is_transformers_own(tmp_path, family, dtype):
    save_checkpoint(tmp_path / "source", **FAMILIES[family])
    model, tokenizer = load(tmp_path / "source")
    model.generation_config.update(do_sample=True, temperature=0.3)
    model.to(dtype).save_pretrained(tmp_path / "llama", layout="llama", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "llama", layout="llama")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert (type(loaded), loaded.dtype) == (transformers.LlamaForCausalLM, dtype)
    assert loaded.generation_config.temperature == 0.3
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits(loaded), logits(model), atol=tolerance, rtol=0)
    portable = AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert type(portable).__module__.startswith("transformers.")
    assert portable(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert portable.chat_template == tokenizer.chat_template


def test_llama_layout_takes_a_state_dict_and_ties(tmp_path):
    model = BaichuanForCausalLM(tiny_config(tie_word_embeddings=True))
    doubled = {name: weight * 2 for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled, layout="llama")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(loaded.model.embed_tokens.weight, doubled["model.embed_tokens.weight"])
    assert not torch.equal(model.model.embed_tokens.weight, doubled["model.embed_tokens.weight"])


def test_a_layout_replaces_the_one_before(source, tmp_path):
    model, _ = load(source)
    model.save_pretrained(tmp_path, layout="remote_code", max_shard_size="20KB")
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert "auto_map" not in (tmp_path / "config.json").read_text()


def test_layout_of_a_block_reaches_trainer(source, tmp_path):
    model, tokenizer = load(source)
    trainer = Trainer(model, quiet_arguments(tmp_path / "out"), processing_class=tokenizer)
    with save_layout("remote_code"):
        trainer.save_model()
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" in json.loads((tmp_path / "out" / file).read_text())
    trainer.save_model(str(tmp_path / "later"))
    assert not list((tmp_path / "later").glob("*.py"))


def test_transformers_own_switch_carries_all_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(BaichuanForCausalLM, "_auto_class", None)
    BaichuanForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    BaichuanForCausalLM(tiny_config()).save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {"AutoConfig", *AUTO_CLASSES}


def test_what_cannot_be_llama_is_refused_and_nothing_written(tmp_path):
    model = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi"))
    with pytest.raises(ValueError, match="position_embedding_type='alibi' cannot become Llama"):
        model.save_pretrained(tmp_path, layout="llama")
    assert not list(tmp_path.iterdir())


def test_adapters_cannot_be_llama(tmp_path):
    model = BaichuanForCausalLM(tiny_config())
    model.add_adapter(LoraConfig(target_modules=["W_pack"]))
    with pytest.raises(ValueError, match="merge them first, or save them and use `baichuan-hf convert`"):
        model.save_pretrained(tmp_path, layout="llama")
    model.save_pretrained(tmp_path, layout="remote_code")
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_adapter_of_peft_is_saved_as_ever(tmp_path):
    model = get_peft_model(BaichuanForCausalLM(tiny_config()), LoraConfig(target_modules=["W_pack"]))
    with save_layout("remote_code"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))


class MyModel(BaichuanForCausalLM):
    """What a user may derive, in a module of their own."""


def test_code_of_another_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match="but not of MyModel"):
        MyModel(tiny_config()).save_pretrained(tmp_path, layout="remote_code")


@pytest.mark.parametrize("save", ["model", "tokenizer", "block"])
def test_unknown_layout_is_answered_with_the_known(source, tmp_path, save):
    model, tokenizer = load(source)
    with pytest.raises(ValueError, match="layout is 'gguf'; allowed are 'baichuan', 'remote_code', 'llama'"):
        if save == "block":
            with save_layout("gguf"):
                pass
        else:
            {"model": model, "tokenizer": tokenizer}[save].save_pretrained(tmp_path, layout="gguf")


def test_checkpoints_to_resume_from_cannot_be_llama(tmp_path):
    model = BaichuanForCausalLM(tiny_config())
    with save_layout("llama"), pytest.raises(ValueError, match="could not resume from Llama's layout"):
        model.save_pretrained(tmp_path / "checkpoint-7")
    model.save_pretrained(tmp_path / "checkpoint-7", layout="llama")
