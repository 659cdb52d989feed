"""Adapters between W_pack and q_proj, k_proj, v_proj: PEFT computes the same with either."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from baichuan_hf import BaichuanForCausalLM, to_llama
from baichuan_hf.conversion.lora import convert_adapter
from tests.helpers import tiny_config


IDS = torch.arange(3, 60).reshape(3, 19)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]


@pytest.fixture
def folders(tmp_path):
    """Two folders that compute the same: `ours` and `llama`."""

    def save(**overrides):
        torch.manual_seed(0)
        model = BaichuanForCausalLM(tiny_config(initializer_range=0.2, **overrides))
        model.save_pretrained(tmp_path / "ours")
        to_llama(model).save_pretrained(tmp_path / "llama")
        return tmp_path

    return save


def save_adapter(folder, base, **options):
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 12, "init_lora_weights": False} | options
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "magnitude" in name or "modules_to_save" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    model.save_pretrained(folder)


@torch.no_grad()
def logits(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = model(IDS).logits
    adapted = PeftModel.from_pretrained(model, adapter).eval()(IDS).logits
    assert (adapted - plain).abs().max() > 0.1  # or the adapter would prove nothing
    return adapted


TO_LLAMA = {
    "fused": {"target_modules": ["W_pack"]},
    "others": {"target_modules": ["W_pack", "o_proj", "gate_proj", "down_proj", "lm_head"]},
    "regex": {"target_modules": r".*layers\.1\.self_attn\.W_pack|.*layers\.0\.mlp\.up_proj"},
    "one-layer": {"target_modules": ["W_pack"], "layers_to_transform": [1]},
    "rslora": {"target_modules": ["W_pack", "o_proj"], "use_rslora": True},
    "dora": {"target_modules": ["W_pack", "down_proj"], "use_dora": True},
    "head": {"target_modules": ["W_pack"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "excluded": {"target_modules": ["W_pack", "o_proj"], "exclude_modules": ["model.layers.0.self_attn.W_pack"]},
    "patterns": {
        "target_modules": ["W_pack", "o_proj"],
        "rank_pattern": {"W_pack": 2, r"layers\.1\.self_attn\.o_proj": 3},
        "alpha_pattern": {r"layers\.0\.self_attn\.W_pack": 5},
    },
}


@pytest.mark.parametrize("overrides", [{}, {"normalize_lm_head": True}], ids=["plain", "normhead"])
@pytest.mark.parametrize("options", TO_LLAMA.values(), ids=TO_LLAMA)
def test_to_llama_and_back(options, overrides, folders):
    folder = folders(**overrides)
    save_adapter(folder / "adapter", folder / "ours", **options)
    expected = logits(folder / "ours", folder / "adapter")
    done = convert_adapter(folder / "adapter", folder / "split", to="llama", base=folder / "llama")
    assert (done.rank, done.error, done.base_checked) == (4, None, True)
    torch.testing.assert_close(logits(folder / "llama", folder / "split"), expected, atol=1e-4, rtol=0)
    config = json.loads((folder / "split" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "llama")

    convert_adapter(folder / "split", folder / "back", to="baichuan", base=folder / "ours")
    torch.testing.assert_close(logits(folder / "ours", folder / "back"), expected, atol=1e-4, rtol=0)


TO_BAICHUAN = {
    "all": {"target_modules": ALL},
    "some": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "k_proj", "v_proj"], "use_dora": True},
    "unequal": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 7},
    },
}


@pytest.mark.parametrize("options", TO_BAICHUAN.values(), ids=TO_BAICHUAN)
def test_to_baichuan_is_exact(options, folders):
    folder = folders()
    save_adapter(folder / "adapter", folder / "llama", **options)
    expected = logits(folder / "llama", folder / "adapter")
    done = convert_adapter(folder / "adapter", folder / "fused", to="baichuan")
    parts = [name for name in ("q_proj", "k_proj", "v_proj") if name in options["target_modules"]]
    assert done.rank == sum(options.get("rank_pattern", {}).get(name, 4) for name in parts)
    torch.testing.assert_close(logits(folder / "ours", folder / "fused"), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_lower_ranks_are_the_best_ones(rslora, folders):
    """The error is the one of the matrices that PEFT adds, measured from without."""
    folder = folders()
    save_adapter(folder / "adapter", folder / "llama", target_modules=ALL, use_rslora=rslora)

    def added(name, adapter):
        base = AutoModelForCausalLM.from_pretrained(folder / name)
        before = {key: weight.clone() for key, weight in base.state_dict().items()}
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
        return {key: merged[key] - before[key] for key in before if "W_pack" in key}

    convert_adapter(folder / "adapter", folder / "exact", to="baichuan")
    exact = added("ours", folder / "exact")
    assert len(exact) == 2
    for rank in (1, 5, 11):
        done = convert_adapter(folder / "adapter", folder / "cut", to="baichuan", rank=rank, overwrite=True)
        errors = []
        for key, delta in added("ours", folder / "cut").items():
            assert torch.linalg.matrix_rank(delta, rtol=1e-4) == rank
            best = torch.linalg.svdvals(exact[key])[rank:].norm() / exact[key].norm()
            errors.append(((delta - exact[key]).norm() / exact[key].norm()).item())
            assert errors[-1] == pytest.approx(best.item(), rel=1e-3)
        assert done.error == pytest.approx(max(errors), rel=1e-3)
    # What was W_pack's comes back at its own rank.
    save_adapter(folder / "ours-adapter", folder / "ours", target_modules=["W_pack"], use_rslora=rslora)
    convert_adapter(folder / "ours-adapter", folder / "split", to="llama")
    done = convert_adapter(folder / "split", folder / "again", to="baichuan", rank=4)
    assert done.error < 1e-6
    expected = logits(folder / "ours", folder / "ours-adapter")
    torch.testing.assert_close(logits(folder / "ours", folder / "again"), expected, atol=1e-4, rtol=0)


def test_pickled_adapters_are_read(folders):
    folder = folders()
    save_adapter(folder / "adapter", folder / "ours", target_modules=["W_pack"])
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter" / "adapter_model.bin")
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    done = convert_adapter(folder / "adapter", folder / "split", to="llama")
    assert done.modules == 6
    expected = logits(folder / "ours", folder / "adapter")
    torch.testing.assert_close(logits(folder / "llama", folder / "split"), expected, atol=1e-4, rtol=0)


def test_a_base_that_is_not_at_hand_is_said(folders):
    folder = folders()
    save_adapter(folder / "adapter", folder / "ours", target_modules=["W_pack"])
    file = folder / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/nothing"}
    file.write_text(json.dumps(config))
    assert not convert_adapter(folder / "adapter", folder / "split", to="llama").base_checked


REFUSED = {
    "alibi": ({"position_embedding_type": "alibi"}, {}, {}, "'alibi' cannot become Llama"),
    "bias": ({}, {"bias": "lora_only"}, {}, "bias='lora_only' cannot be converted"),
    "rank": ({}, {}, {"rank": 3}, "--rank is for --to baichuan"),
    "head-dora": ({}, {"target_modules": ["W_pack", "lm_head"], "use_dora": True}, {}, "DoRA on lm_head"),
    "kind": ({}, {"lora_bias": True}, {}, "lora_bias=True cannot be converted"),
    "nothing": ({}, {"target_modules": ["o_proj"]}, {}, "nothing on W_pack"),
}


@pytest.mark.parametrize(("overrides", "options", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_to_llama(overrides, options, arguments, message, tmp_path):
    BaichuanForCausalLM(tiny_config(**overrides)).save_pretrained(tmp_path / "ours")
    save_adapter(tmp_path / "adapter", tmp_path / "ours", **{"target_modules": ["W_pack"]} | options)
    with pytest.raises(ValueError, match=message):
        convert_adapter(tmp_path / "adapter", tmp_path / "dst", to="llama", **arguments)
    assert not (tmp_path / "dst").exists()


REFUSED_BACK = {
    "grouped": ({"num_key_value_heads": 2}, {}, {}, "4 heads in 2 groups"),
    "grouped-queries": ({"num_key_value_heads": 2}, {"target_modules": ["q_proj"]}, {}, "4 heads in 2 groups"),
    "some-dora": ({}, {"target_modules": ["q_proj", "v_proj"], "use_dora": True}, {}, "DoRA on some of q, k and v"),
    "dora-rank": ({}, {"use_dora": True}, {"rank": 3}, "--rank does not go with DoRA"),
    "high-rank": ({}, {}, {"rank": 13}, "--rank is 13; the exact adapter has 12"),
    "nothing": ({}, {"target_modules": ["o_proj"]}, {}, "nothing on q_proj, k_proj, v_proj"),
}


@pytest.mark.parametrize(("overrides", "options", "arguments", "message"), REFUSED_BACK.values(), ids=REFUSED_BACK)
def test_refused_to_baichuan(overrides, options, arguments, message, folders):
    folder = folders(**overrides)
    save_adapter(folder / "adapter", folder / "llama", **{"target_modules": ALL[:3]} | options)
    with pytest.raises(ValueError, match=message):
        convert_adapter(folder / "adapter", folder / "dst", to="baichuan", **arguments)


def test_grouped_heads_are_seen_without_the_base(folders):
    folder = folders(num_key_value_heads=2)
    save_adapter(folder / "adapter", folder / "llama", target_modules=ALL)
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/nothing"}))
    with pytest.raises(ValueError, match=r"have \[32, 64\] rows, so its heads are grouped"):
        convert_adapter(folder / "adapter", folder / "dst", to="baichuan")


def test_a_trained_plain_head_is_no_norm_head(folders):
    folder = folders(normalize_lm_head=True)
    options = {"target_modules": ALL[:3], "modules_to_save": ["lm_head"]}
    save_adapter(folder / "adapter", folder / "llama", **options)
    file = folder / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights["base_model.model.lm_head.weight"][5] *= 1.5
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds a trained head .* Merge the adapter into its Llama"):
        convert_adapter(folder / "adapter", folder / "dst", to="baichuan", base=folder / "ours")


def test_an_adapter_is_overwritten_on_request_only(folders):
    folder = folders()
    save_adapter(folder / "adapter", folder / "ours", target_modules=["W_pack"])
    convert_adapter(folder / "adapter", folder / "dst", to="llama")
    with pytest.raises(ValueError, match="holds an adapter already: name another folder, or pass --overwrite"):
        convert_adapter(folder / "adapter", folder / "dst", to="llama")
    with pytest.raises(ValueError, match="is the source itself"):
        convert_adapter(folder / "adapter", folder / "adapter", to="llama", overwrite=True)
    convert_adapter(folder / "adapter", folder / "dst", to="llama", overwrite=True)
