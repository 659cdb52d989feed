"""Models with rotary positions as Llama: read by transformers' own classes, and back."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

import baichuan_hf
from baichuan_hf import BaichuanForCausalLM, BaichuanModel, to_llama
from baichuan_hf.conversion.baichuan_folders import convert_baichuan_folder
from baichuan_hf.conversion.folders import convert_folder
from tests.helpers import golden_folder, tiny_config
from tests.helpers.golden import load_golden, logits_difference


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
TEXT = "春天来了，hello  world\n<reserved_106>1234 🙂 嬲"


def save_golden(folder, name, dtype=torch.float32):
    model = load_golden(name).load(dtype=dtype)
    model.save_pretrained(folder)
    return model


def folder_weights(folder):
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


def greedy(model, ids):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "repetition_penalty": 1.0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@DTYPES
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", ["baichuan-7b", "baichuan2-7b"])
def test_llama_computes_the_same(name, max_shard_size, dtype, tmp_path):
    model = save_golden(tmp_path / "src", name, dtype)
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama", max_shard_size=max_shard_size)
    assert (done.written_class, done.parameters, done.dtype) == ("LlamaForCausalLM", model.num_parameters(), dtype)
    assert ((tmp_path / "dst" / "model.safetensors.index.json").is_file()) == (max_shard_size == "100KB")

    llama, info = LlamaForCausalLM.from_pretrained(tmp_path / "dst", dtype="auto", output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    expected = load_golden(name).tensors
    ids = expected["input_ids"]
    with torch.no_grad():
        ours, theirs = model(ids).logits, llama(ids).logits
    assert theirs.dtype == dtype
    if dtype == torch.float32:
        assert logits_difference(theirs, expected["logits"]) < 2e-4
    elif name == "baichuan-7b":
        assert torch.equal(theirs, ours)
    else:
        # The folded rows are rounded once more, to 8 bits.
        error = (theirs.float() - ours.float()).norm() / ours.float().norm()
        assert error < 0.01
    assert torch.equal(greedy(llama, ids), greedy(model, ids))
    if dtype == torch.float32:
        tokens = greedy(llama, expected["generate.prompt.1"][None])[0, -12:]
        assert torch.equal(tokens, expected["generate.tokens.1"][:12])


def convert_back(*folders):
    return convert_baichuan_folder(*folders, to="baichuan")


@pytest.mark.parametrize("way_back", [convert_folder, convert_back], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("name", ["baichuan-7b", "baichuan2-7b"])
def test_way_back_gives_the_same_tensors(name, way_back, tmp_path):
    save_golden(tmp_path / "src", name)
    convert_baichuan_folder(tmp_path / "src", tmp_path / "llama", to="llama", max_shard_size="100KB")
    way_back(tmp_path / "llama", tmp_path / "back")
    before, after = folder_weights(tmp_path / "src"), folder_weights(tmp_path / "back")
    assert before.keys() == after.keys()
    differing = [key for key in before if not torch.equal(before[key], after[key])]
    assert differing == (["lm_head.weight"] if name == "baichuan2-7b" else [])
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = [BaichuanForCausalLM.from_pretrained(tmp_path / folder)(ids).logits for folder in ("src", "back")]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


VARIANTS = {
    "grouped": {"num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "tied-normhead": {"tie_word_embeddings": True, "normalize_lm_head": True},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_variants_in_memory_and_from_folders(overrides, tmp_path):
    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config(initializer_range=0.2, **overrides)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "src")
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    ids = torch.randint(3, 128, (2, 60))
    with torch.no_grad():
        expected = model(ids).logits
        for llama in (to_llama(model), LlamaForCausalLM.from_pretrained(tmp_path / "dst")):
            torch.testing.assert_close(llama(ids).logits, expected, atol=1e-4, rtol=0)
        convert_back(tmp_path / "dst", tmp_path / "back")
        back = BaichuanForCausalLM.from_pretrained(tmp_path / "back")
        torch.testing.assert_close(back(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering", ""])
def test_other_heads(head, tmp_path):
    torch.manual_seed(0)
    name = f"For{head}" if head else "Model"
    model = getattr(baichuan_hf, f"Baichuan{name}")(tiny_config(initializer_range=0.2)).eval()
    model.save_pretrained(tmp_path / "src")
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    llama = getattr(transformers, f"Llama{name}").from_pretrained(tmp_path / "dst")
    assert done.written_class == type(llama).__name__
    convert_back(tmp_path / "dst", tmp_path / "back")
    before, after = folder_weights(tmp_path / "src"), folder_weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ids = torch.randint(3, 128, (2, 20))
    with torch.no_grad():
        for ours, theirs in zip(model(ids, return_dict=False), llama(ids, return_dict=False), strict=True):
            if isinstance(ours, torch.Tensor):
                torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_to_llama_shares_no_weights_and_keeps_the_mode():
    model = BaichuanForCausalLM(tiny_config()).to(torch.bfloat16).train()
    model.generation_config.update(max_new_tokens=7)
    llama = to_llama(model)
    assert (llama.training, llama.dtype, llama.generation_config.max_new_tokens) == (True, torch.bfloat16, 7)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


REFUSED = {
    "alibi": (
        {"position_embedding_type": "alibi"},
        "position_embedding_type='alibi' cannot .* with `import baichuan_hf`",
    ),
    "norm": ({"norm_type": "layer_norm"}, "norm_type='layer_norm'"),
    "experts": ({"num_local_experts": 2}, "num_local_experts=2"),
    "window": ({"sliding_window": 4}, "sliding_window=4"),
    "encoder": ({"is_causal": False}, "is_causal=False"),
    "mean": ({"classifier_pooling": "mean"}, "classifier_pooling='mean'"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cannot_be_is_refused(overrides, message, tmp_path):
    model = BaichuanModel(tiny_config(**overrides))
    with pytest.raises(ValueError, match=message):
        to_llama(model)
    model.save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match=message):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("kind", ["baichuan-surrogate", pytest.param("baichuan2", marks=pytest.mark.slow)])
def test_tokenizer_and_template_need_no_package(kind, tmp_path):
    """And no other code either: the process cannot import this package."""
    save_golden(tmp_path / "src", "baichuan-7b")
    tokenizer = AutoTokenizer.from_pretrained(golden_folder(f"tokenizers/{kind}"))
    tokenizer.save_pretrained(tmp_path / "src")
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    assert done.copied == ["generation settings", "tokenizer"]
    chat = [{"role": "user", "content": "你好"}]
    expected = [tokenizer(TEXT).input_ids, tokenizer.decode(tokenizer(TEXT).input_ids)]
    expected += [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)]
    code = f"""
import sys, json
sys.modules["baichuan_hf"] = None
from transformers import AutoTokenizer, AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "dst")!r})
assert type(AutoModelForCausalLM.from_pretrained({str(tmp_path / "dst")!r})).__name__ == "LlamaForCausalLM"
ids = tokenizer({TEXT!r}).input_ids
prompt = tokenizer.apply_chat_template({chat!r}, add_generation_prompt=True, tokenize=False)
print(json.dumps([ids, tokenizer.decode(ids), prompt]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == expected
    convert_folder(tmp_path / "dst", tmp_path / "back")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert type(back) is type(tokenizer)
    assert back(TEXT).input_ids == expected[0]
    assert (tmp_path / "back" / "tokenizer.model").is_file()
