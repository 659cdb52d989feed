"""`check_folder` on good folders, and on such that were damaged in one way each."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import BaichuanForSequenceClassification, BaichuanModel, bundled_checkpoint
from baichuan_hf.checking import check_folder
from tests.helpers import tiny_config
from tests.helpers.checkpoint import save_checkpoint
from tests.helpers.golden import GOLDEN_FAMILIES, load_golden


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit(file, **values):
    """Write fields into a JSON file; None takes one out."""
    fields = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (fields | values).items() if value is not None}))


def change_weights(folder, function):
    file = folder / "model.safetensors"
    save_file(function(load_file(file)), file, metadata={"format": "pt"})


def shard(folder):
    """The same weights in several files."""
    AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(folder, max_shard_size="200KB")


def found(report, level):
    return [finding for finding in report.findings if finding.level == level]


@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_a_good_folder_has_nothing_to_say(name):
    report = check_folder(bundled_checkpoint(name))
    assert report.ok and not found(report, "warning")
    assert report.family.startswith("baichuan-13b (alibi" if name == "tiny-alibi" else "baichuan2-7b (rope")
    assert report.dtypes == {"bfloat16": report.parameters}
    assert report.generated
    assert not report.inferred


@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_original_files(name):
    report = check_folder(load_golden(name).checkpoint)
    assert report.ok, report.findings
    positions = report.inferred["position_embedding_type"]
    assert positions.value == ("alibi" if "13b" in name else "rope")
    assert "max_position_embeddings=" in positions.because
    assert report.inferred["normalize_lm_head"] == (False, "vocab_size=512")
    assert any("auto_map points at code" in finding.what for finding in found(report, "note"))


def test_foreign_code_is_named_and_not_run(folder, tmp_path):
    (folder / "modeling_baichuan.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoModelForCausalLM": "modeling_baichuan.MyModel", "AutoConfig": "modeling_baichuan.MyConfig"}
    edit(folder / "config.json", auto_map=auto_map, architectures=["BaiChuanForCausalLM"], disc_version="1.0")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_baichuan.MyTokenizer", None]})
    report = check_folder(folder)
    assert report.ok
    notes = " ".join(finding.what for finding in found(report, "note"))
    for words in ("never run with `import baichuan_hf`: modeling_baichuan.py", "AutoConfig, Auto", "disc_version"):
        assert words in notes
    assert "spelled BaiChuanForCausalLM" in notes
    assert not (tmp_path / "ran").exists()


def test_the_first_spelling_of_the_tokenizer_class_loads(folder):
    values = {"tokenizer_class": "BaiChuanTokenizer", "auto_map": {"AutoTokenizer": ["x.BaiChuanTokenizer", None]}}
    edit(folder / "tokenizer_config.json", **values)
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == "BaichuanTokenizer"
    assert check_folder(folder, generate=False).findings == []


def zero_whole(weights):
    name = "model.layers.1.mlp.up_proj.weight"
    return weights | {name: torch.zeros_like(weights[name])}


def one_nan(weights):
    weights["model.layers.0.self_attn.W_pack.weight"][3, 4] = torch.nan
    return weights


def one_infinity(weights):
    weights["lm_head.weight"][3, 4] = -torch.inf
    return weights


def split_qkv(weights):
    split = {}
    for name, weight in weights.items():
        parts = dict(zip("qkv", weight.chunk(3), strict=True)) if "W_pack" in name else {}
        split |= {name.replace("W_pack", f"{part}_proj"): rows.clone() for part, rows in parts.items()}
        split |= {} if parts else {name: weight}
    return split


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


WEIGHTS = {
    "zero": (zero_whole, r"zero throughout: model\.layers\.1\.mlp\.up_proj\.weight", "earlier checkpoint"),
    "nan": (one_nan, r"NaN or infinity in \S+0\.self_attn\.W_pack\.weight \(1 of 3,072\)", "save in bfloat16"),
    "infinity": (one_infinity, r"lm_head\.weight \(1 of", "float16"),
    "missing": (
        lambda w: {k: w[k] for k in w if "1.mlp.up" not in k},
        r"1 of \d+ are missing: \S+1\.mlp\.up",
        "shard",
    ),
    "wrapper": (lambda w: {f"module.{k}": w[k] for k in w}, r"(\d+) of \1 are missing", "begin with 'module.': save"),
    "llama": (split_qkv, r"2 of \d+ are missing: \S+W_pack", r'"model_type": "llama".*convert'),
    "adapter": (
        lambda w: {k.replace("o_proj", "o_proj.base_layer"): w[k] for k in w} | {"a.lora_A.weight": torch.ones(2, 2)},
        r"2 of \d+ are missing: \S+o_proj",
        "merge_and_unload",
    ),
    "shape": (
        lambda w: w | {"model.layers.0.mlp.up_proj.weight": torch.ones(40, 32)},
        r"up_proj\.weight is \(40, 32\), but \(48, 32\) by config.json \(intermediate_size=48",
        "correct intermediate_size",
    ),
    "rows": (
        lambda w: w | {"lm_head.weight": torch.cat([w["lm_head.weight"], torch.ones(1, 32)])},
        r"lm_head\.weight is",
        "--vocab-size",
    ),
}


@pytest.mark.parametrize(("damage", "what", "way_out"), WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights(folder, damage, what, way_out):
    change_weights(folder, damage)
    report = check_folder(folder)
    (error,) = found(report, "error")
    assert error.part == "weights"
    assert re.search(what, error.what), error
    assert re.search(way_out, error.way_out), error
    assert report.generated is None


def test_a_padding_row_of_zeros_is_fine_and_others_are_told(folder):
    def zero_rows(weights):
        weights["model.embed_tokens.weight"][[0, 7, 9]] = 0
        return weights

    change_weights(folder, lambda weights: {**weights, **zero_rows(weights)})
    report = check_folder(folder, generate=False)
    assert [finding.what for finding in report.findings] == [
        "2 rows of model.embed_tokens.weight are zero, first 7: tokens that were never trained"
    ]
    edit(folder / "config.json", pad_token_id=9)
    notes = found(check_folder(folder, generate=False), "note")
    assert any("first 0:" in finding.what for finding in notes)


def test_weights_that_are_not_read_are_a_warning(folder):
    change_weights(folder, lambda weights: weights | {"model.layers.0.self_attn.rope.table": torch.ones(3)})
    report = check_folder(folder, generate=False)
    assert report.ok
    assert report.unexpected == ["model.layers.0.self_attn.rope.table"]
    change_weights(
        folder, lambda w: {k: w[k] for k in w if "table" not in k} | {"x.rotary_emb.inv_freq": torch.ones(3)}
    )
    assert check_folder(folder, generate=False).findings == []


def missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def two_bad_shards(folder):
    missing_shard(folder)
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(name):
    def write(folder):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")

    return write


def adapter(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / name.replace("config", "adapter_config").replace("model", "adapter_model"))


FILES = {
    "shard": (missing_shard, [r"model-00002-of-00003\.safetensors is missing"], "Download it again"),
    "two-shards": (two_bad_shards, [r"00002-of.* is missing", "00003-of.* cut short"], "Download it again"),
    "pointer": (pointer("model.safetensors"), ["is a Git LFS pointer"], "lfs pull --include model.safetensors"),
    "tokenizer-pointer": (
        pointer("tokenizer.model"),
        ["tokenizer.model is a Git LFS pointer"],
        "lfs pull --include tokenizer.model",
    ),
    "config-pointer": (pointer("config.json"), ["config.json is a Git LFS pointer"], "lfs pull --include config"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), ["there are no weights"], "download"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), ["config.json is missing"], "copy it"),
    "adapter": (adapter, ["it is an adapter"], r"baichuan-hf merge .* DST"),
}


@pytest.mark.parametrize(("damage", "expected", "way_out"), FILES.values(), ids=FILES)
def test_damaged_files(folder, damage, expected, way_out):
    damage(folder)
    errors = [finding for finding in found(check_folder(folder), "error") if finding.part == "files"]
    assert len(errors) == len(expected)
    for what, error in zip(expected, errors, strict=True):
        assert re.search(what, error.what), error
        assert re.search(way_out, error.way_out), error


def test_leftovers_and_files_that_are_not_read(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "optimizer.pt").write_bytes(bytes(2_000_000))
    notes = [finding.what for finding in check_folder(folder, generate=False).findings]
    assert notes == [
        "weights that are not read, because model.safetensors is: pytorch_model.bin",
        "left over from training or a download, 2.0 MB: optimizer.pt",
    ]


def test_safetensors_come_before_shards_of_an_earlier_save(folder, tmp_path):
    """As in transformers: a folder that was saved anew beside the old files."""
    expected = load_file(folder / "model.safetensors")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"old": "pytorch_model-1.bin"}}))
    torch.save({"old": torch.ones(1)}, folder / "pytorch_model-1.bin")
    report = check_folder(folder)
    assert report.ok and report.parameters == sum(weight.numel() for weight in expected.values())


CONFIGS = {
    "json": ({}, r"config\.json is no JSON object", "copy it"),
    "no-type": ({"model_type": None}, "model_type is None", 'write "model_type": "baichuan"'),
    "old-type": ({"model_type": "Baichuan-M1"}, "'Baichuan-M1'", '"model_type": "baichuan"'),
    "llama": ({"model_type": "llama"}, "'llama', not 'baichuan'", "baichuan-hf convert .* --to baichuan"),
    "other": ({"model_type": "gemma3"}, "'gemma3'", "transformers' own classes"),
    "list": ({"rope_scaling": [1]}, "list", "correct the field"),
    "value": ({"hidden_act": "swiglu_fast"}, "hidden_act='swiglu_fast' is unknown", "correct the field"),
}


@pytest.mark.parametrize(("values", "what", "way_out"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_are_no_baichuan(folder, values, what, way_out):
    edit(folder / "config.json", **values)
    if not values:
        (folder / "config.json").write_text("{'single': 'quotes'}")
    (error,) = found(check_folder(folder), "error")
    assert error.part == "config"
    assert re.search(what, error.what), error
    assert re.search(way_out, error.way_out), error


def test_a_trimmed_baichuan2_is_taken_for_a_plain_head(folder):
    """Its vocabulary is below 125,696, but its tokenizer (or the z-loss in the config) tells."""
    edit(folder / "config.json", normalize_lm_head=None, z_loss_weight=0)
    report = check_folder(folder, generate=False)
    assert report.inferred["normalize_lm_head"].value is False
    (warning,) = found(report, "warning")
    assert "the head is taken for a plain one, but z_loss_weight in config.json speaks for a NormHead" in warning.what
    assert '"normalize_lm_head": true' in warning.way_out
    edit(folder / "config.json", normalize_lm_head=True)
    assert found(check_folder(folder, generate=False), "warning") == []


def test_positions_of_another_family_than_the_sizes(folder):
    """A 13B whose config was saved with both lengths, by tools that know no ALiBi."""
    sizes = {"hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 40}
    edit(folder / "config.json", position_embedding_type=None, head_dim=None, layer_types=None, **sizes)
    (folder / "model.safetensors").unlink()
    (warning,) = found(check_folder(folder), "warning")
    assert "taken for 'rope', but a model of these sizes (baichuan-13b, baichuan2-13b) has 'alibi'" in warning.what


def test_tokenizer_that_does_not_fit(folder):
    words = len(AutoTokenizer.from_pretrained(folder))
    change_weights(folder, lambda w: {k: v[:-2] if v.shape[0] == words else v for k, v in w.items()})
    edit(folder / "config.json", vocab_size=words - 2, eos_token_id=5)
    report = check_folder(folder)
    (error,) = found(report, "error")
    assert error.what == f"it has the id {words - 1}, but vocab_size={words - 2} is all that the embeddings hold"
    assert f"--vocab-size {words}" in error.way_out
    assert "eos_token_id is 2 in the tokenizer, 5 in config.json" in [f.what for f in found(report, "warning")]


def test_tokenizer_json_of_another_origin(folder):
    pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'baichuan-hf[sentencepiece]'")
    file = folder / "tokenizer.json"
    if not file.is_file():
        AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(file))
    assert check_folder(folder, generate=False).findings == []
    model = json.loads(file.read_text())
    model["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    file.write_text(json.dumps(model))
    (error,) = found(check_folder(folder, generate=False), "error")
    assert "other ids than SentencePiece" in error.what and "delete tokenizer.json" in error.way_out


def test_damaged_tokenizer_model_beside_a_whole_tokenizer_json(folder):
    pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'baichuan-hf[sentencepiece]'")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:-9])
    (error,) = found(check_folder(folder), "error")
    assert error.what == "tokenizer.model is damaged or cut short" and "base model" in error.way_out


def test_without_tokenizer_or_chat_pieces(tmp_path):
    from baichuan_hf import BaichuanForCausalLM

    BaichuanForCausalLM(tiny_config()).save_pretrained(tmp_path)
    (warning,) = found(check_folder(tmp_path), "warning")
    assert warning.what == "there is none" and warning.part == "tokenizer"


def test_classifiers_and_models_without_head(folder, tmp_path):
    for model_class in (BaichuanForSequenceClassification, BaichuanModel):
        model_class.from_pretrained(folder, dtype="auto").save_pretrained(tmp_path / model_class.__name__)
        report = check_folder(tmp_path / model_class.__name__)
        assert report.ok, report.findings
        assert report.model_class == model_class.__name__
    edit(tmp_path / "BaichuanModel" / "config.json", architectures=["BaichuanForSequenceClassification"])
    (error,) = found(check_folder(tmp_path / "BaichuanModel"), "error")
    assert "1 of" in error.what and "score.weight" in error.what and "correct architectures" in error.way_out


def test_numbers_that_overflow_are_found_by_the_last_step(folder):
    """Finite weights whose products are not."""
    change_weights(folder, lambda w: {k: v * 1e30 if "mlp" in k else v for k, v in w.items()})
    (error,) = found(check_folder(folder), "error")
    assert error.part == "generation" and "computes NaN or infinity" in error.what
    assert check_folder(folder, generate=False).ok


def test_a_model_larger_than_the_memory_is_not_loaded(folder, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1e5}))
    report = check_folder(folder, device="cpu")
    assert report.ok and report.generated is None
    (note,) = found(report, "note")
    assert "not tried: the weights take 0.0 GB, 0.0 GB of memory are free" in note.what


def test_no_folder():
    with pytest.raises(FileNotFoundError, match=r"hf download baichuan-inc/Baichuan2-7B-Chat --local-dir"):
        check_folder("baichuan-inc/Baichuan2-7B-Chat")
