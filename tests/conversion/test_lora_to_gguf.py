"""LoRA adapters as GGUF files; that llama.cpp computes the same with them is in test_llama_cpp.py."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from baichuan_hf.conversion.lora_to_gguf import convert_adapter_to_gguf
from tests.helpers.checkpoint import save_checkpoint


gguf = pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")


def save_adapter(folder, base, **options):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["W_pack", "o_proj"], "init_lora_weights": False}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings | options))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pairs_hold_their_factor(tmp_path, use_rslora):
    base = save_checkpoint(tmp_path / "base", position_embedding_type="alibi")  # q and k are in their own order
    adapted = save_adapter(tmp_path / "adapter", base, use_rslora=use_rslora)
    done = convert_adapter_to_gguf(tmp_path / "adapter", tmp_path / "files")
    assert (done.file, done.modules, done.rank) == (tmp_path / "files" / "adapter.gguf", 4, 4)
    reader = gguf.GGUFReader(done.file)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == 0
    pairs = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    attention = adapted.base_model.model.model.layers[1].self_attn
    for name, expected in {
        "attn_output": attention.o_proj.get_delta_weight("default"),
        **dict(
            zip(("attn_q", "attn_k", "attn_v"), attention.W_pack.get_delta_weight("default").chunk(3), strict=True)
        ),
    }.items():
        found = pairs[f"blk.1.{name}.weight.lora_b"] @ pairs[f"blk.1.{name}.weight.lora_a"]
        torch.testing.assert_close(found, expected.float())


def test_what_is_refused(tmp_path):
    base = save_checkpoint(tmp_path / "base")
    save_adapter(tmp_path / "dora", base, use_dora=True)
    save_adapter(tmp_path / "tokens", base, trainable_token_indices=[5])
    save_adapter(tmp_path / "plain", base)
    with pytest.raises(ValueError, match="has DoRA on model.layers.0.self_attn.* llama.cpp has not: merge it"):
        convert_adapter_to_gguf(tmp_path / "dora", tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="holds .*embed_tokens.* which is no LoRA: merge it"):
        convert_adapter_to_gguf(tmp_path / "tokens", tmp_path / "x.gguf")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match="x.gguf exists already: name another file, or pass --overwrite"):
        convert_adapter_to_gguf(tmp_path / "plain", tmp_path / "x.gguf")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="base, the model of .*plain, is no folder of a Baichuan.* give --base"):
        convert_adapter_to_gguf(tmp_path / "plain", tmp_path / "y.gguf")
    convert_adapter_to_gguf(tmp_path / "plain", tmp_path / "x.gguf", base=tmp_path / "moved", overwrite=True)
