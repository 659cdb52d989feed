"""`baichuan-hf convert`, from folder to folder."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, TokenizersBackend

import baichuan_hf
from baichuan_hf.benchmarks.peers import build_reference, draw_inputs, largest_difference
from baichuan_hf.conversion.folders import convert_folder
from tests.helpers import REPOSITORY
from tests.helpers.checkpoint import save_checkpoint
from tests.helpers.converted import FIRST


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地玄黄宇宙洪荒", *(f"w{number}" for number in range(80))]


def save_folder(folder, kind, *, model_class=None, dtype=torch.float32):
    reference = build_reference(kind, FIRST[kind], model_class=model_class).to(dtype)
    reference.save_pretrained(folder)
    return reference


def save_tokenizer(folder, kind):
    if kind == "bert":
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(folder)
        vocabulary.unlink()
    else:
        backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = TokenizersBackend(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "loaded_by"),
    [
        ("gpt2", "AutoModelForCausalLM"),
        ("bert", "AutoModelForMaskedLM"),
        ("t5", "AutoModel"),
        ("marian", "AutoModelForSeq2SeqLM"),
        ("vit", "AutoModelForImageClassification"),
    ],
)
def test_folder_to_folder(run, tmp_path, kind, loaded_by):
    reference = save_folder(tmp_path / "src", kind)
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert result.exit_code == 0, result.output
    assert f"{type(reference).__name__} -> " in result.stdout
    assert f'model = {loaded_by}.from_pretrained("{tmp_path}/dst")' in result.stdout
    loaded = getattr(transformers, loaded_by).from_pretrained(tmp_path / "dst")
    assert f"{loaded.num_parameters():,} parameters, float32" in result.stdout
    assert largest_difference(reference, loaded, length=11) < 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_tokenizer_is_copied(run, tmp_path, kind):
    save_folder(tmp_path / "src", kind)
    tokenizer = save_tokenizer(tmp_path / "src", kind)
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert f"Saved to {tmp_path}/dst: the model and the tokenizer" in result.stdout
    copied = AutoTokenizer.from_pretrained(tmp_path / "dst")
    text = "天地 玄 w7 w79 unheard"
    assert type(copied) is type(tokenizer)
    assert copied(text).input_ids == tokenizer(text).input_ids
    assert len(set(copied(text).input_ids)) > 3


def test_image_processor_is_copied(run, tmp_path):
    """With its type, which old ones lack: transformers then goes by the model's."""
    save_folder(tmp_path / "src", "vit")
    (tmp_path / "src" / "preprocessor_config.json").write_text('{"do_resize": true, "size": 12}')
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert "the model and the image processor" in result.stdout
    settings = json.loads((tmp_path / "dst" / "preprocessor_config.json").read_text())
    assert settings == {"do_resize": True, "size": 12, "image_processor_type": "ViTImageProcessor"}


def test_dtype_and_generation_settings_are_kept(tmp_path):
    reference = build_reference("llama", "heads").to(torch.bfloat16)
    reference.generation_config.update(max_new_tokens=5, repetition_penalty=1.5)
    reference.save_pretrained(tmp_path / "src")
    convert_folder(tmp_path / "src", tmp_path / "dst")
    weights = load_file(tmp_path / "dst" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dst")
    assert (loaded.dtype, loaded.generation_config.repetition_penalty) == (torch.bfloat16, 1.5)


def test_loads_in_a_fresh_process(tmp_path):
    reference = save_folder(tmp_path / "src", "marian")
    convert_folder(tmp_path / "src", tmp_path / "dst")
    inputs = draw_inputs(reference, 7, "none")
    code = f"""
import baichuan_hf, torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path / "dst")!r})
print(model.generate(torch.tensor({inputs["input_ids"].tolist()}), max_new_tokens=6, eos_token_id=None).tolist())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    expected = reference.generate(inputs["input_ids"], max_new_tokens=6, eos_token_id=None)
    assert result.stdout.strip() == str(expected.tolist()), result.stderr


def test_weights_of_another_head_are_named(run, tmp_path):
    save_folder(tmp_path / "src", "bert", model_class="BertForSequenceClassification")
    config = json.loads((tmp_path / "src" / "config.json").read_text())
    (tmp_path / "src" / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert "Not part of BertModel, left out: classifier.bias, classifier.weight" in result.stdout


def test_config_without_a_class_means_the_usual_one(run, tmp_path):
    save_folder(tmp_path / "src", "longformer")
    config = json.loads((tmp_path / "src" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "src" / "config.json").write_text(json.dumps(config))
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert "LongformerForMaskedLM -> BaichuanForMaskedLM" in result.stdout


def test_a_model_is_overwritten_on_request_only(run, tmp_path):
    save_folder(tmp_path / "src", "gpt2")
    save_folder(tmp_path / "dst", "llama")
    before = (tmp_path / "dst" / "model.safetensors").read_bytes()
    words = ["convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan"]
    result = run(*words)
    assert result.exit_code == 1
    assert f"{tmp_path}/dst holds a model already: name another folder, or pass --overwrite" in result.stderr
    assert (tmp_path / "dst" / "model.safetensors").read_bytes() == before
    assert run(*words, "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["model_type"] == "baichuan"


def test_source_is_never_the_destination(run, tmp_path):
    save_folder(tmp_path, "gpt2")
    result = run("convert", tmp_path, tmp_path / "." / "x" / "..", "--to", "baichuan", "--overwrite")
    assert result.exit_code == 1
    assert "is the source itself" in result.stderr


def test_a_refused_model_leaves_nothing(run, tmp_path):
    reference = transformers.T5ForConditionalGeneration(build_reference("t5", "relu").config)
    reference.save_pretrained(tmp_path / "src")
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert result.exit_code == 1
    assert "T5ForConditionalGeneration (model_type 't5') cannot be converted" in result.stderr
    assert "T5EncoderModel" in result.stderr
    assert not (tmp_path / "dst").exists()


def test_incomplete_files_are_named(run, tmp_path):
    save_folder(tmp_path / "src", "gpt2")
    file = tmp_path / "src" / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert result.exit_code == 1
    assert "lacks 1 weights of GPT2LMHeadModel, first transformer.h.1.mlp.c_fc.weight" in result.stderr


def test_no_folder_is_named(run, tmp_path):
    result = run("convert", "openai-community/gpt2", tmp_path / "dst", "--to", "baichuan")
    assert result.exit_code == 1
    assert "openai-community/gpt2 is no checkpoint folder" in result.stderr
    assert "hf download openai-community/gpt2" in result.stderr


def test_code_in_the_folder_is_not_run(run, tmp_path):
    save_folder(tmp_path / "src", "gpt2")
    config = json.loads((tmp_path / "src" / "config.json").read_text())
    hostile = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "src" / "config.json").write_text(json.dumps(config | hostile))
    (tmp_path / "src" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "ran").exists()


def test_baichuan_to_llama(run, tmp_path):
    folder = save_checkpoint(tmp_path / "src", normalize_lm_head=True, z_loss_weight=0.1)
    result = run(
        "convert", folder, tmp_path / "dst", "--to", "llama", "--max-shard-size", "20KB", "--dtype", "float32"
    )
    assert result.exit_code == 0, result.output
    assert "BaichuanForCausalLM -> LlamaForCausalLM: " in result.stdout
    assert "float32" in result.stdout
    assert f"Saved to {tmp_path}/dst: the model and the generation settings and the tokenizer" in result.stdout
    assert "NormHead is folded" in result.stdout
    assert "Llama has no z_loss_weight=0.1" in result.stdout
    assert "import baichuan_hf" not in result.stdout
    assert f'model = AutoModelForCausalLM.from_pretrained("{tmp_path}/dst")' in result.stdout
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dst")
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(llama(ids).logits, expected, atol=1e-4, rtol=0)
    assert len(list((tmp_path / "dst").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("kind", ["baichuan", "llama", "gpt2"])
def test_code_beside_a_converted_model(run, tmp_path, kind):
    """What that code can do is tested for `save_pretrained`, which writes the same."""
    if kind == "baichuan":
        model = transformers.AutoModelForCausalLM.from_pretrained(save_checkpoint(tmp_path / "src"))
        AutoTokenizer.from_pretrained(tmp_path / "src").save_pretrained(tmp_path / "saved", layout="remote_code")
    else:
        save_folder(tmp_path / "src", kind)
        model = baichuan_hf.from_transformers(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "src"))
    model.save_pretrained(tmp_path / "saved", layout="remote_code")
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan", "--remote-code")
    assert result.exit_code == 0, result.output
    assert "the code, for trust_remote_code=True" in result.stdout
    assert f'from_pretrained("{tmp_path}/dst", trust_remote_code=True)' in result.stdout
    for saved in [*(tmp_path / "saved").glob("*.py"), *(tmp_path / "saved").glob("*config.json")]:
        converted = tmp_path / "dst" / saved.name
        if saved.suffix == ".py":
            assert converted.read_bytes() == saved.read_bytes()
        else:
            assert json.loads(converted.read_text()).get("auto_map") == json.loads(saved.read_text()).get("auto_map")


def test_code_is_for_models_that_become_baichuan(run, tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    for target in ("llama", "gguf"):
        result = run("convert", folder, tmp_path / "dst", "--to", target, "--remote-code")
        assert result.exit_code == 1
        assert "--remote-code is for models that become Baichuan" in result.stderr


def test_alibi_is_no_llama(run, tmp_path):
    folder = save_checkpoint(tmp_path / "src", position_embedding_type="alibi")
    result = run("convert", folder, tmp_path / "dst", "--to", "llama")
    assert result.exit_code == 1
    assert "position_embedding_type='alibi' cannot become Llama" in result.stderr
    assert not (tmp_path / "dst").exists()


def test_options_of_baichuan_folders_are_refused_for_others(run, tmp_path):
    save_folder(tmp_path / "src", "gpt2")
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan", "--vocab-size", "99")
    assert result.exit_code == 1
    assert "--vocab-size and --adapter are for Baichuan and Llama models" in result.stderr
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "llama")
    assert "has model_type 'gpt2'; this is for Baichuan models" in result.stderr


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_other_architectures_in_another_dtype_and_sharded(run, tmp_path, kind):
    save_folder(tmp_path / "src", kind)
    words = ["convert", tmp_path / "src", tmp_path / "dst", "--to", "baichuan", "--dtype", "bfloat16"]
    assert run(*words, "--max-shard-size", "20KB").exit_code == 0
    assert len(list((tmp_path / "dst").glob("model-*.safetensors"))) > 1
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dst").dtype == torch.bfloat16


@pytest.fixture
def adapter(tmp_path):
    """Of a model at `src`."""
    folder = save_checkpoint(tmp_path / "src")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(target_modules=["W_pack"], init_lora_weights=False)).save_pretrained(
        tmp_path / "adapter"
    )
    return tmp_path / "adapter"


def test_adapter_there_and_back(run, tmp_path, adapter):
    result = run("convert", adapter, tmp_path / "split", "--to", "llama", "--base", "somewhere/a-llama")
    assert result.exit_code == 0, result.output
    assert "Adapter -> llama: 6 modules, rank 8" in result.stdout
    assert json.loads((tmp_path / "split" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "somewhere/a-llama"
    )
    result = run("convert", tmp_path / "split", tmp_path / "back", "--to", "baichuan", "--rank", "4")
    assert "Adapter -> baichuan: 2 modules, rank 4" in result.stdout
    assert "W_pack cut to rank 4: largest relative error of a layer 0." in result.stdout
    # A Llama always has them.
    assert "Not checked whether its model has rotary positions" not in result.stdout
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "nobody/nothing"}))
    result = run("convert", adapter, tmp_path / "split", "--to", "llama", "--overwrite")
    assert "Not checked whether its model has rotary positions" in result.stdout


def test_adapters_and_models_have_options_of_their_own(run, tmp_path, adapter):
    result = run("convert", adapter, tmp_path / "dst", "--to", "llama", "--dtype", "float16")
    assert result.exit_code == 1
    assert "is an adapter: of the options it takes --base, --rank and --overwrite" in result.stderr
    result = run("convert", tmp_path / "src", tmp_path / "dst", "--to", "llama", "--rank", "3")
    assert "--base and --rank are for adapters" in result.stderr


def test_the_bundled_model_is_converted_by_its_name(run, tmp_path):
    result = run("convert", "tiny", tmp_path / "llama", "--to", "llama")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["model_type"] == "llama"
