"""`baichuan-hf merge`; what it computes is tested in tests/adapters."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


@pytest.fixture
def adapter(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    settings = LoraConfig(target_modules=["W_pack"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_command(run, checkpoint, adapter, tmp_path):
    result = run("merge", adapter, tmp_path / "dst", "--layout", "llama", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert f"LORA of {checkpoint} -> LlamaForCausalLM: " in result.stdout
    assert "float32" in result.stdout
    assert "import baichuan_hf" not in result.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dst").config.model_type == "llama"
    result = run("merge", adapter, tmp_path / "code", "--layout", "remote_code")
    assert f'from_pretrained("{tmp_path}/code", trust_remote_code=True)' in result.stdout
    assert "bfloat16" in result.stdout


def test_what_is_no_adapter(run, checkpoint, tmp_path):
    for name in (checkpoint, "owner/name"):
        result = run("merge", name, tmp_path / "dst")
        assert result.exit_code == 1
        assert f"{name} is no adapter, it has no adapter_config.json" in result.stderr
