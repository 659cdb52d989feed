"""`baichuan-hf serve`: transformers' server answers with what `generate` gives."""

import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from baichuan_hf import bundled_checkpoint
from baichuan_hf.inference import generate_text, load_causal_lm


MESSAGES = [{"role": "user", "content": "春天来了 Hello"}]
COUNT = 20
GREEDY = {"do_sample": False, "max_new_tokens": COUNT}


@pytest.fixture
def connect(start_server):
    """Starts `baichuan-hf serve`, and gives a client of OpenAI's."""
    pytest.importorskip("fastapi", reason="needs fastapi: pip install 'baichuan-hf[serve]'")
    openai = pytest.importorskip("openai", reason="needs openai: pip install 'baichuan-hf[serve]'")

    def start(model, *options):
        words = ("baichuan_hf.cli.main", "serve", model, "--device", "cpu", "--dtype", "float32", *options)
        return openai.OpenAI(base_url=f"{start_server(*words)}/v1", api_key="none", max_retries=0)

    return start


@pytest.mark.slow
def test_openai_client(connect):
    model, tokenizer = load_causal_lm("tiny", dtype="float32", device="cpu")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True).input_ids
    client = connect("tiny")
    assert [served.id for served in client.models.list()] == ["tiny"]

    settings = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": COUNT}
    answer = client.chat.completions.create(**settings)
    expected = generate_text(model, tokenizer, ids, **GREEDY)
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == len(ids)
    stream = client.chat.completions.create(**settings, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == expected
    assert len(list(filter(None, pieces))) > COUNT / 2

    text = client.completions.create(model="tiny", prompt="春天", temperature=0, max_tokens=COUNT).choices[0].text
    assert text == generate_text(model, tokenizer, "春天", **GREEDY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_continuous_batching(connect, tmp_path, name):
    """Without a repetition penalty, which transformers leaves out there."""
    folder = shutil.copytree(bundled_checkpoint(name), tmp_path / name)
    GenerationConfig.from_pretrained(folder, repetition_penalty=1.0).save_pretrained(folder)
    model, tokenizer = load_causal_lm(str(folder), dtype="float32", device="cpu")
    client = connect(folder, "--continuous-batching", "--cb-num-blocks", "64")
    for prompt in ("春天", "Once upon a time"):
        answer = client.completions.create(model=str(folder), prompt=prompt, temperature=0, max_tokens=COUNT)
        assert answer.choices[0].text == generate_text(model, tokenizer, prompt, **GREEDY)


@pytest.mark.slow
def test_adapter_and_original_spelling(connect, tmp_path):
    """`BaiChuanForCausalLM`, as the config of Baichuan-7B has it, and an adapter of that folder."""
    folder = shutil.copytree(bundled_checkpoint("tiny"), tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("BaichuanForCausalLM", "BaiChuanForCausalLM"))
    settings = LoraConfig(target_modules=["W_pack"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    bare, adapted = (
        generate_text(*load_causal_lm(str(name), dtype="float32", device="cpu"), "春天", **GREEDY)
        for name in (folder, tmp_path / "adapter")
    )
    settings = {"model": str(tmp_path / "adapter"), "prompt": "春天", "temperature": 0, "max_tokens": COUNT}
    answer = connect(tmp_path / "adapter").completions.create(**settings)
    assert answer.choices[0].text == adapted != bare
