"""`baichuan-hf merge`: the saved model gives what model and adapter give together."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EncoderDecoderModel,
)

from baichuan_hf.adapters.loading import load_base, save_base_config
from baichuan_hf.adapters.merging import merge_folder
from baichuan_hf.quantization import quantize_folder
from tests.helpers import FAMILIES
from tests.helpers.checkpoint import save_checkpoint


IDS = torch.arange(3, 60).reshape(3, 19)


def save_adapter(folder, base, config=None, auto_class=AutoModelForCausalLM, **options):
    torch.manual_seed(1)
    settings = {"target_modules": ["W_pack", "down_proj"], "init_lora_weights": False} | options
    adapted = get_peft_model(auto_class.from_pretrained(base, dtype=torch.float32), config or LoraConfig(**settings))
    adapted.save_pretrained(folder)
    return adapted.eval()


@torch.no_grad()
def check_equal(folder, adapted, auto_class=AutoModelForCausalLM):
    merged = auto_class.from_pretrained(folder, dtype=torch.float32)
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)
    with adapted.disable_adapter():
        assert (merged(IDS).logits - adapted(IDS).logits).abs().max() > 0.01
    return merged


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("family", ["rope", "alibi", "rope-normhead"])
def test_merged_is_the_two_together(tmp_path, family, kind):
    base = save_checkpoint(tmp_path / "base", **FAMILIES[family])
    adapted = save_adapter(tmp_path / "adapter", base, **kind)
    done = merge_folder(tmp_path / "adapter", tmp_path / "dst", dtype=torch.float32)
    assert done[:3] == ("LORA", str(base), "BaichuanForCausalLM")
    check_equal(tmp_path / "dst", adapted)
    text = "春天 Hello"
    expected, copied = (AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (base, tmp_path / "dst"))
    assert copied == expected


def test_other_kinds_of_adapters(tmp_path):
    base = save_checkpoint(tmp_path / "base")
    config = IA3Config(target_modules=["W_pack"], feedforward_modules=[], init_ia3_weights=False)
    adapted = save_adapter(tmp_path / "adapter", base, config)
    merge_folder(tmp_path / "adapter", tmp_path / "dst", dtype=torch.float32)
    check_equal(tmp_path / "dst", adapted)
    save_adapter(tmp_path / "prompt", base, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="of the kind PROMPT_TUNING, which changes no weights"):
        merge_folder(tmp_path / "prompt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_classifier_of_another_base_folder(tmp_path):
    """By PEFT alone: the task names the class, the labels are those of the config, and `base` is where it is now."""
    base = save_checkpoint(tmp_path / "base")
    settings = {"auto_class": AutoModelForSequenceClassification, "task_type": "SEQ_CLS"}
    adapted = save_adapter(tmp_path / "adapter", base, **settings)
    base.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="base, no such folder: give --base"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst")
    done = merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(tmp_path / "moved"), dtype=torch.float32)
    assert done.model_class == "BaichuanForSequenceClassification"
    check_equal(tmp_path / "dst", adapted, AutoModelForSequenceClassification)


def test_layouts(tmp_path):
    base = save_checkpoint(tmp_path / "base", normalize_lm_head=True)
    adapted = save_adapter(tmp_path / "adapter", base)
    words = {"adapter": tmp_path / "adapter", "destination": tmp_path / "dst", "dtype": torch.float32}
    merge_folder(**words, layout="llama", max_shard_size="20KB")
    assert type(check_equal(tmp_path / "dst", adapted)).__name__ == "LlamaForCausalLM"
    assert type(AutoTokenizer.from_pretrained(tmp_path / "dst")).__name__ != "BaichuanTokenizer"
    assert len(list((tmp_path / "dst").glob("model-*.safetensors"))) > 1
    with pytest.raises(ValueError, match="dst holds a model already: name another folder, or pass --overwrite"):
        merge_folder(**words)
    merge_folder(**words, layout="remote_code", overwrite=True)
    assert (tmp_path / "dst" / "modeling_baichuan.py").is_file()
    assert not list((tmp_path / "dst").glob("model-*.safetensors"))
    check_equal(tmp_path / "dst", adapted)


def test_alibi_is_no_llama(tmp_path):
    save_adapter(tmp_path / "adapter", save_checkpoint(tmp_path / "base", position_embedding_type="alibi"))
    with pytest.raises(ValueError, match="position_embedding_type='alibi' cannot become Llama"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst", layout="llama")
    assert not list((tmp_path / "dst").iterdir())


@pytest.mark.parametrize(("layers", "message"), [(3, "it lacks 4 weights, first"), (1, "it has besides 4 weights")])
def test_adapter_of_a_deeper_or_shallower_model(tmp_path, layers, message):
    """PEFT itself takes what fits."""
    save_adapter(tmp_path / "adapter", save_checkpoint(tmp_path / "base"))
    other = save_checkpoint(tmp_path / "other", num_hidden_layers=layers)
    with pytest.raises(ValueError, match=f"does not go with .*other, it is of another model: {message}"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(other))


def test_adapter_of_a_norm_head(tmp_path):
    base = save_checkpoint(tmp_path / "base", normalize_lm_head=True)
    save_adapter(tmp_path / "adapter", base, target_modules=["W_pack", "lm_head"])
    with pytest.raises(ValueError, match="adapts lm_head, which is a NormHead"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst")


def test_quantised_base(tmp_path):
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    from transformers import TorchAoConfig

    base = save_checkpoint(tmp_path / "base")
    settings = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(base, quantization_config=settings).save_pretrained(tmp_path / "int8")
    adapted = save_adapter(tmp_path / "adapter", base)
    with pytest.raises(ValueError, match="int8 is quantised: merge .*adapter into the model that it was made from"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(tmp_path / "int8"))
    merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(base), dtype=torch.float32)
    check_equal(tmp_path / "dst", adapted)


def test_pair_for_translation(tmp_path):
    """As `train --task seq2seq --lora` saves it: of a saved pair, and of one that it has put together from a model."""
    causal = save_checkpoint(tmp_path / "causal")
    encoder = AutoModel.from_pretrained(causal)
    decoder = AutoModelForCausalLM.from_pretrained(causal, add_cross_attention=True)
    EncoderDecoderModel(encoder=encoder, decoder=decoder).float().save_pretrained(tmp_path / "pair")
    adapted = save_adapter(
        tmp_path / "adapter", tmp_path / "pair", auto_class=AutoModelForSeq2SeqLM, task_type="SEQ_2_SEQ_LM"
    )
    save_base_config(adapted.get_base_model(), tmp_path / "adapter")
    assert merge_folder(tmp_path / "adapter", tmp_path / "dst").model_class == "EncoderDecoderModel"
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "dst")
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="of an encoder-decoder that its training has put together from .*causal"):
        merge_folder(tmp_path / "adapter", tmp_path / "other", base=str(causal))


def test_head_that_was_folded_for_quantising(tmp_path):
    """The adapter was trained over a plain head, and is merged under the NormHead that this one was made from."""
    base = save_checkpoint(tmp_path / "base", normalize_lm_head=True)
    adapted = save_adapter(tmp_path / "adapter", base)
    adapted.config.normalize_lm_head = False
    save_base_config(adapted.get_base_model(), tmp_path / "adapter")
    merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(base), dtype=torch.float32)
    assert check_equal(tmp_path / "dst", adapted).config.normalize_lm_head


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    save_adapter(tmp_path / "adapter", save_checkpoint(tmp_path / "base"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"0\.0 GB free, the weights need"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst")
    assert not list((tmp_path / "dst").iterdir())


def test_the_files_say_what_the_base_is(tmp_path):
    """Its dtype and its quantisation, whatever the training had."""
    base = save_checkpoint(tmp_path / "base")
    adapted = save_adapter(tmp_path / "adapter", base)
    save_base_config(adapted.get_base_model(), tmp_path / "adapter")
    assert merge_folder(tmp_path / "adapter", tmp_path / "dst").dtype == torch.bfloat16
    other = save_checkpoint(tmp_path / "other", hidden_size=64)
    with pytest.raises(ValueError, match=r"does not go with .*other, it is of another model"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst2", base=str(other))


def test_an_adapter_of_a_quantised_folder(tmp_path):
    pytest.importorskip("torchao", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    base = save_checkpoint(tmp_path / "base")
    quantize_folder(base, tmp_path / "int8", method="int8")
    adapted = save_adapter(tmp_path / "adapter", base)
    save_base_config(adapted.get_base_model(), tmp_path / "adapter")
    loaded = load_base(tmp_path / "adapter", AutoModelForCausalLM, base=str(tmp_path / "int8"))
    assert loaded.is_quantized
    with pytest.raises(ValueError, match="is quantised: merge"):
        merge_folder(tmp_path / "adapter", tmp_path / "dst", base=str(tmp_path / "int8"))
