"""Adapters through PEFT: default targets, methods, saving, switching, merging, four-bit weights."""

import copy
import subprocess
import sys

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

import baichuan_hf
from tests.helpers import FAMILIES, tiny_config


IDS = torch.arange(5, 21).view(2, 8)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def make(family="rope-normhead", cls=baichuan_hf.BaichuanForCausalLM, **overrides):
    torch.manual_seed(0)
    return cls(tiny_config(initializer_range=0.2, **(FAMILIES[family] | overrides))).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted_modules(model):
    return {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}


def randomise(model, seed=1):
    """An adapter starts as no change (B is zero); this gives it an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("order", ["peft-first", "baichuan_hf-first"])
def test_default_target_whatever_is_imported_first(order):
    imports = ["import peft", "import baichuan_hf"]
    script = "\n".join(imports if order == "peft-first" else imports[::-1])
    script += """
from peft import LoraConfig, get_peft_model
config = baichuan_hf.BaichuanConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                    num_attention_heads=2)
model = get_peft_model(baichuan_hf.BaichuanForCausalLM(config), LoraConfig())
print(sorted({name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['W_pack']"


def test_importing_the_package_imports_no_peft():
    script = "import sys, baichuan_hf; print('peft' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_default_targets(family):
    model = get_peft_model(make(family), LoraConfig())
    fused = "num_key_value_heads" not in FAMILIES[family]
    assert adapted_modules(model) == ({"W_pack"} if fused else {"q_proj", "k_proj", "v_proj"})


def test_all_linear_leaves_the_head_alone(family):
    model = get_peft_model(make(family), LoraConfig(target_modules="all-linear"))
    projections = {"W_pack"} if "num_key_value_heads" not in FAMILIES[family] else {"q_proj", "k_proj", "v_proj"}
    assert adapted_modules(model) == projections | {"o_proj", "gate_proj", "up_proj", "down_proj"}


METHODS = {
    "lora": LoraConfig(r=4),
    "lora-all-linear": LoraConfig(r=4, target_modules="all-linear"),
    "dora": LoraConfig(r=4, use_dora=True),
    "rslora": LoraConfig(r=4, use_rslora=True),
    "lora-on-the-head": LoraConfig(r=4, target_modules=["W_pack", "q_proj", "v_proj", "lm_head"]),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapter_merges_and_unmerges(family, method, request):
    if method == "lora-on-the-head" and "normhead" in family:
        reason = "PEFT adds the product of the adapter to normalised logits, but merges it under the norms of the rows"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    base = make(family)
    before = logits(base)
    model = randomise(get_peft_model(base, copy.deepcopy(METHODS[method])))
    adapted = logits(model)
    assert (adapted - before).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.allclose(logits(model), before, atol=1e-5)
    model.merge_adapter()
    assert torch.allclose(logits(model), adapted, atol=2e-4)
    model.unmerge_adapter()
    assert torch.allclose(logits(model), adapted, atol=2e-4)
    merged = model.merge_and_unload()
    assert type(merged) is baichuan_hf.BaichuanForCausalLM
    assert torch.allclose(logits(merged), adapted, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_adapter_trains_and_comes_back(family, tmp_path, method):
    """Training changes the adapter alone; saved and loaded on a fresh base, it gives the same logits."""
    base = make(family)
    base.save_pretrained(tmp_path / "base")
    frozen = {name: p.clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, copy.deepcopy(METHODS[method]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.get_base_model().named_parameters():
        original = name.replace(".base_layer", "")
        if original in frozen:
            assert torch.equal(parameter, frozen[original]), name

    model.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


def test_adapter_loads_through_the_auto_classes(tmp_path):
    base = make()
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = randomise(get_peft_model(base, LoraConfig(r=4, task_type=TaskType.CAUSAL_LM)))
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected, atol=1e-5)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected, atol=1e-5)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    native.load_adapter(tmp_path / "adapter")
    assert torch.allclose(logits(native), expected, atol=1e-5)


def test_adapters_switch(tmp_path):
    base = make()
    before = logits(base)
    model = randomise(get_peft_model(base, LoraConfig(r=4), adapter_name="first"), seed=1)
    first = logits(model)
    model.add_adapter("second", LoraConfig(r=2))
    model.set_adapter("second")
    randomise(model, seed=2)
    second = logits(model)
    assert (first - second).abs().max() > 1e-2
    model.set_adapter("first")
    assert torch.allclose(logits(model), first, atol=1e-5)
    model.delete_adapter("first")
    model.set_adapter("second")
    assert torch.allclose(logits(model), second, atol=1e-5)
    assert torch.allclose(logits(model.unload()), before, atol=1e-5)


def test_merged_model_is_a_plain_checkpoint(tmp_path):
    merged = randomise(get_peft_model(make(), LoraConfig(r=4))).merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again.lm_head) is type(merged.lm_head)
    assert torch.equal(logits(again), logits(merged))


def test_head_trained_beside_an_adapter(family, tmp_path):
    """`modules_to_save` is the way to train a normalised head: it is trained whole, and merges."""
    base = make(family)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, modules_to_save=["lm_head"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(logits(again), adapted, atol=1e-5)
    merged = model.merge_and_unload()
    assert torch.allclose(logits(merged), adapted, atol=2e-4)
    assert type(merged.lm_head) is type(make(family).lm_head)


def test_prompt_tuning(family, tmp_path):
    base = make(family)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)
    model = get_peft_model(base, config)
    mask = torch.ones_like(IDS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, attention_mask=mask, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # The same as putting the trained embeddings in front.
    with torch.no_grad():
        prompt = model.get_prompt(batch_size=2)
        embeddings = torch.cat([prompt, base.get_input_embeddings()(IDS)], dim=1)
        expected = base(inputs_embeds=embeddings).logits
        assert torch.allclose(model(input_ids=IDS, attention_mask=mask).logits, expected, atol=1e-4)
    tokens = model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert tokens.shape == (2, IDS.shape[1] + 3)


def test_classifier_with_lora_trains_its_head(tmp_path):
    base = make(cls=baichuan_hf.BaichuanForSequenceClassification, num_labels=2)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=4))
    assert any("score" in name for name, p in model.named_parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
def test_lora_with_gradient_checkpointing(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = randomise(get_peft_model(make(), LoraConfig(r=4)))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name


@pytest.mark.parametrize("family", ["rope-normhead", "alibi", "gqa"], indirect=True)
def test_qlora_on_a_cpu(family, tmp_path):
    """LoRA over four-bit weights has the loss and the gradients of LoRA over the same weights written out."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'baichuan-hf[quantization]'")
    # Widths that blocks of 64 four-bit weights divide.
    make(family, intermediate_size=128).save_pretrained(tmp_path)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantized, plain = (
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=copy.deepcopy(four_bit)) for _ in range(2)
    )
    assert type(quantized.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert type(quantized.lm_head) is type(make(family).lm_head)
    results = []
    for model in (prepare_model_for_kbit_training(quantized), plain.dequantize()):
        adapted = randomise(get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")))
        loss = adapted.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name}))
    (loss, gradients), (expected_loss, expected) = results
    assert torch.allclose(loss, expected_loss, atol=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
