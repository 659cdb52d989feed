"""The files of the original: what is read, what is written, and the numbers that come from neither."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import baichuan_hf
from tests.helpers.golden import (
    ALIBI_FAMILIES,
    GOLDEN_FAMILIES,
    NORMHEAD_FAMILIES,
    draw_weights,
    load_golden,
    sha256,
)


@pytest.fixture(params=GOLDEN_FAMILIES)
def golden(request):
    return load_golden(request.param)


@pytest.fixture
def transformers_log():
    """What transformers warns about during a test: its logger does not propagate, so caplog sees nothing."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def original_weights(golden):
    weights = {}
    for file in sorted(golden.checkpoint.glob("pytorch_model*.bin")):
        weights |= torch.load(file, weights_only=True)
    return weights


def kept(golden):
    """What expected.json says of each original weight, but for the rotary buffers, which are no weights."""
    return {name: spec for name, spec in golden.facts["state_dict"].items() if "rotary_emb.inv_freq" not in name}


def test_weights_drawn_again_are_the_stored_ones():
    """The other folders of the selection hold no weights: this one shows whether this torch draws the same numbers."""
    golden = load_golden("baichuan-7b")
    stored = torch.load(golden.folder / "pytorch_model.bin", weights_only=True)
    drawn = draw_weights(golden.facts, golden.json("config.json"))
    assert list(drawn) == list(stored)
    for name, weight in stored.items():
        torch.testing.assert_close(drawn[name], weight, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_load_keeps_names_shapes_and_bytes(golden):
    state = golden.load().state_dict()
    assert {name: list(weight.shape) for name, weight in state.items()} == {
        name: spec["shape"] for name, spec in kept(golden).items()
    }
    original = original_weights(golden)
    for name, weight in state.items():
        assert torch.equal(weight, original[name]), name


def test_weights_are_those_of_the_golden_run(golden):
    state = golden.load().state_dict()
    if golden.checkpoint != golden.folder and any(
        sha256(state[n]) != spec["sha256"] for n, spec in kept(golden).items()
    ):
        pytest.skip("torch.randn rounds differently on this machine than where the weights were drawn")
    assert {name: sha256(weight) for name, weight in state.items()} == {
        name: spec["sha256"] for name, spec in kept(golden).items()
    }


def test_load_reports_nothing(golden, transformers_log):
    """No missing and no unexpected keys: the buffers `rotary_emb.inv_freq` of Baichuan-7B are passed over silently."""
    model, info = AutoModelForCausalLM.from_pretrained(
        golden.checkpoint, output_loading_info=True, **golden.config_overrides
    )
    assert type(model) is baichuan_hf.BaichuanForCausalLM
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert not [message for message in transformers_log if "rotary" in message or "LOAD REPORT" in message.upper()]
    assert transformers_log == []


@pytest.mark.parametrize(
    "auto_class, name",
    [
        ("AutoModel", "BaichuanModel"),
        ("AutoModelForSequenceClassification", "BaichuanForSequenceClassification"),
        ("AutoModelForTokenClassification", "BaichuanForTokenClassification"),
        ("AutoModelForQuestionAnswering", "BaichuanForQuestionAnswering"),
    ],
)
def test_other_classes_take_the_backbone(golden, auto_class, name):
    import transformers

    model, info = golden.load(getattr(transformers, auto_class), output_loading_info=True)
    assert type(model) is getattr(baichuan_hf, name)
    original = original_weights(golden)
    backbone = getattr(model, model.base_model_prefix, model)
    for key, weight in backbone.state_dict().items():
        assert torch.equal(weight, original[f"model.{key}"]), key
    new = {key for key in info["missing_keys"] if not key.startswith(("score", "qa_outputs", "classifier"))}
    assert not new, new


@pytest.mark.parametrize("shard_size", ["1GB", "300KB"], ids=["one-file", "sharded"])
def test_save_keeps_the_original_layout(golden, tmp_path, shard_size):
    """What save_pretrained writes, also after a forward in both modes, can be read by tools made for the originals."""
    model = golden.load()
    ids = golden.tensors["input_ids"]
    model.eval()(ids)
    model.train()(ids, labels=ids).loss.backward()
    model.eval()(ids)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "300KB")
    written = {}
    for file in files:
        written |= load_file(file)
    original = original_weights(golden)
    assert set(written) == set(kept(golden))
    for name, weight in written.items():
        assert torch.equal(weight, original[name]), name

    # The family is in the file: nothing has to be said again.
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_save_keeps_the_config_keys_that_other_tools_read(golden, tmp_path):
    golden.load().save_pretrained(tmp_path)
    original, written = golden.json("config.json"), json.loads((tmp_path / "config.json").read_text())
    keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "rms_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
        "model_type",
    ]
    assert {key: written[key] for key in keys} == {key: original[key] for key in keys}
    assert ("model_max_length" if golden.alibi else "max_position_embeddings") in written
    assert "auto_map" not in written
    assert written["architectures"] == ["BaichuanForCausalLM"]


def test_config_tells_the_family(golden):
    config = AutoConfig.from_pretrained(golden.checkpoint, **golden.config_overrides)
    assert type(config) is baichuan_hf.BaichuanConfig
    assert config.position_embedding_type == ("alibi" if golden.alibi else "rope")
    assert config.normalize_lm_head == (golden.name in NORMHEAD_FAMILIES)
    assert config.max_position_embeddings == golden.facts["sizes"]["ctx"]


def test_generation_config_is_the_published_one(golden, tmp_path):
    published = golden.json("generation_config.json")
    model = golden.load()
    for key in ("user_token_id", "assistant_token_id", "repetition_penalty", "temperature", "top_k", "max_new_tokens"):
        if key in published:
            assert getattr(model.generation_config, key) == published[key]
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).to_dict().get("user_token_id") == published.get("user_token_id")


@pytest.mark.parametrize("family", ALIBI_FAMILIES)
def test_cached_keys_have_the_original_shape(family):
    golden = load_golden(family)
    with torch.no_grad():
        cache = golden.load()(golden.tensors["cache.input_ids"][:, :10], use_cache=True).past_key_values
    assert list(cache.layers[0].keys.shape) == golden.facts["cache.past_key_value_shape_after_prefill"]


@pytest.mark.parametrize("num_heads", range(1, 65))
def test_alibi_slopes(num_heads):
    expected = load_golden("baichuan-13b").json("slopes.json")["slopes"][str(num_heads)]
    config = baichuan_hf.BaichuanConfig(
        vocab_size=8,
        hidden_size=2 * num_heads,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        position_embedding_type="alibi",
    )
    model = baichuan_hf.BaichuanModel(config)
    assert torch.equal(model.positions.slopes, torch.tensor(expected))
    assert not [name for name in model.state_dict() if "slopes" in name]


@pytest.mark.parametrize("family", ALIBI_FAMILIES)
def test_alibi_slopes_after_loading(family):
    """Loading goes through the meta device, which leaves buffers that are in no file uninitialised."""
    golden = load_golden(family)
    expected = load_golden("baichuan-13b").json("slopes.json")["slopes"][str(golden.facts["sizes"]["heads"])]
    for dtype in (torch.float32, torch.bfloat16):
        slopes = golden.load(dtype=dtype).model.positions.slopes
        torch.testing.assert_close(slopes, torch.tensor(expected).to(slopes.dtype), rtol=0, atol=0)
