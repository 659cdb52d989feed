"""`quantize_folder`: what is saved loads again, computes what was quantised, and is nearly the model it was."""

import importlib
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from baichuan_hf import BaichuanForCausalLM, BaichuanForSequenceClassification
from baichuan_hf.checking import check_folder
from baichuan_hf.conversion.baichuan_folders import convert_baichuan_folder
from baichuan_hf.quantization import METHODS, quantization_config, quantize_folder
from baichuan_hf.training import LanguageModelArguments, train
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint


IDS = torch.arange(3, 60).reshape(3, 19)
# How far logits may be off, as a share of their spread: 8 bits, and 4.
TOLERANCES = {"int8": 0.03, "int8-dynamic": 0.05, "float8": 0.12, "bnb-int8": 0.05, "nf4": 0.35, "fp4": 0.5}
TOLERANCES["int4-dynamic"] = 0.5
TEXTS = ["天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。" * 4] * 8


def needs(method):
    for package in METHODS[method].packages:
        pytest.importorskip(package, reason=f"needs {package}: pip install 'baichuan-hf[{METHODS[method].extra}]'")


@pytest.fixture(scope="module", params=["rope-normhead", "alibi"])
def source(request, tmp_path_factory):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1, "vocab_size": 5024}
    return save_checkpoint(tmp_path_factory.mktemp("source"), **sizes | FAMILIES[request.param])


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


@pytest.mark.parametrize("head", [False, True], ids=["layers", "head"])
@pytest.mark.parametrize("method", TOLERANCES)
def test_every_method(source, method, head, tmp_path):
    needs(method)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    done = quantize_folder(source, tmp_path, method=method, group_size=32, head=head, dtype=torch.float32)
    assert (done.layers, done.left) == (10 + head, [])
    assert done.folded == (head and original.config.normalize_lm_head)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    reference, found = logits(original), logits(loaded)
    assert 0 < (found - reference).std() / reference.std() < TOLERANCES[method]
    assert type(loaded.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    assert (type(loaded.lm_head.weight) is torch.nn.Parameter) != head
    assert type(loaded.lm_head) is type(original.lm_head) or head
    assert loaded.config.normalize_lm_head == (original.config.normalize_lm_head and not head)
    assert check_folder(tmp_path).ok


@pytest.mark.parametrize("method", TOLERANCES)
def test_loaded_is_what_was_quantised(source, method, tmp_path):
    """The logits of the folder equal those of the model that `from_pretrained` quantises, to the last bit."""
    needs(method)
    settings = {"group_size": 32, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=quantization_config(method, **settings), dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "saved")
    expected = logits(model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), expected)
    quantize_folder(source, tmp_path / "written", method=method, **settings)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "written")), expected)


def test_gptq(source, tmp_path):
    needs("gptq")
    done = quantize_folder(source, tmp_path, method="gptq", group_size=32, texts=TEXTS, device="cpu")
    assert (done.layers, done.left) == (10, [])
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu") for _ in range(2))
    assert torch.equal(logits(first), logits(second))
    reference = logits(AutoModelForCausalLM.from_pretrained(source))
    assert 0 < (logits(first) - reference).std() / reference.std() < 0.5
    # The texts are nobody's business but the one's who has them.
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["dataset"] is None


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_fine_tuned_over_a_quantised_folder_and_merged_back(source, method, tmp_path):
    """QLoRA over the saved folder; its adapter goes into the full weights, and does there what it has learned."""
    needs(method)
    quantize_folder(source, tmp_path / "quantised", method=method, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised")
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    adapted.save_pretrained(tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert merged(input_ids=IDS, labels=IDS).loss < losses[0] / 2
    assert not hasattr(merged.config, "quantization_config")


def test_layers_that_do_not_suit_are_left_and_named(tmp_path):
    needs("nf4")
    BaichuanForCausalLM(tiny_config(intermediate_size=96)).save_pretrained(tmp_path / "src")
    done = quantize_folder(tmp_path / "src", tmp_path / "dst", method="nf4")
    assert (done.layers, done.left) == (8, ["mlp.down_proj"])
    layer = AutoModelForCausalLM.from_pretrained(tmp_path / "dst").model.layers[1]
    assert type(layer.mlp.up_proj).__name__ == "Linear4bit"
    assert type(layer.mlp.down_proj) is torch.nn.Linear


def test_heads_that_do_not_suit_are_refused_with_the_way_out(tmp_path):
    needs("nf4")
    BaichuanForCausalLM(tiny_config(intermediate_size=128, vocab_size=100)).save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match=r"lm_head has 64 and 100: .* --vocab-size 128, or leave the head out"):
        quantize_folder(tmp_path / "src", tmp_path / "dst", method="nf4", head=True)


def test_shapes_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(tmp_path):
    needs("nf4")
    BaichuanForCausalLM(tiny_config(intermediate_size=96)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"inputs are a multiple of 64 .* down_proj has 96 and 64\. Leave these out"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    skip = ["lm_head", r"(.*\.)?down_proj"]
    fitting = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    assert logits(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=fitting)).isfinite().all()


def test_a_quantised_norm_head_is_refused(tmp_path):
    needs("int8")
    from torchao.quantization import Int8WeightOnlyConfig

    BaichuanForCausalLM(tiny_config(normalize_lm_head=True)).save_pretrained(tmp_path)
    settings = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["nothing"])
    with pytest.raises(
        ValueError, match=r"lm_head is a NormHead.*baichuan-hf quantize SRC DST --method METHOD --head"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)


def test_classifiers_keep_their_head(tmp_path):
    needs("int8")
    BaichuanForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "src")
    done = quantize_folder(tmp_path / "src", tmp_path / "dst", method="int8")
    assert done.model_class == "BaichuanForSequenceClassification"
    model = BaichuanForSequenceClassification.from_pretrained(tmp_path / "dst")
    assert type(model.score.weight) is torch.nn.Parameter
    with pytest.raises(ValueError, match="head=True is for language models"):
        quantize_folder(tmp_path / "src", tmp_path / "other", method="int8", head=True)


REFUSED = [
    ({"method": "int3"}, r"method 'int3': unknown; there are int8, int8-dynamic, int4, "),
    ({"method": "int4-dynamic", "group_size": 48}, r"inputs are a multiple of 48, .* Give a smaller --group-size"),
    ({"method": "gptq", "group_size": 32}, r"'gptq' fits the weights to texts: it needs some \(--text-file\)"),
    ({"method": "gptq", "group_size": 32, "texts": ["a"], "head": True}, "quantises layers only"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_is_refused(source, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        quantize_folder(source, tmp_path / "dst", **settings)
    assert not (tmp_path / "dst").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("method", ["int4", "float8-dynamic"])
def test_methods_that_need_a_gpu_name_the_others(source, method, tmp_path):
    needs(method)
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8\.\d or newer, .* int8, int8-dynamic"):
        quantize_folder(source, tmp_path / "dst", method=method, group_size=32)


def test_quantised_folders_are_refused(source, tmp_path):
    needs("int8")
    quantize_folder(source, tmp_path / "dst", method="int8")
    with pytest.raises(ValueError, match="is quantised already: take the model that it was made from"):
        quantize_folder(tmp_path / "dst", tmp_path / "again", method="int8")
    with pytest.raises(ValueError, match="holds a model already: name another folder, or pass --overwrite"):
        quantize_folder(source, tmp_path / "dst", method="int8")


@pytest.mark.parametrize("method", ["int8", "nf4", "gptq"])
def test_missing_libraries_are_named_with_the_command(source, method, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"pip install 'baichuan-hf\[{METHODS[method].extra}\]'"):
        quantize_folder(source, tmp_path / "dst", method=method, group_size=32, texts=TEXTS)


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_what_was_loaded_saves_again(source, method, tmp_path):
    """transformers' own save refuses this, of a Llama too."""
    needs(method)
    quantize_folder(source, tmp_path / "first", method=method)
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    first.save_pretrained(tmp_path / "second", max_shard_size="100KB")
    assert len(list((tmp_path / "second").glob("*.safetensors"))) > 1
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "first"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "second")), expected)


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_trained_by_the_command(source, method, tmp_path):
    """Adapters over a quantised folder; the full model takes them by `convert`."""
    needs(method)
    quantize_folder(source, tmp_path / "quantised", method=method)
    file = tmp_path / "x.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")

    def arguments(**values):
        settings = {"task": "pretrain", "train_file": str(file), "eval_fraction": 0, "max_length": 32, "lora": True}
        return LanguageModelArguments(model=str(tmp_path / "quantised"), **settings | values)

    losses = train(arguments(), quiet_arguments(tmp_path / "out", max_steps=30, learning_rate=1e-2))
    assert losses["train_loss"] < 8  # that of a guess is ln(5024) = 8.5
    with pytest.raises(
        ValueError, match=r"is quantised\. Train without, and merge into .* baichuan-hf merge .*out2 DST --base MODEL"
    ):
        train(arguments(merge=True), quiet_arguments(tmp_path / "out2", max_steps=1))
    convert_baichuan_folder(source, tmp_path / "merged", to="baichuan", adapter=tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(source)))
