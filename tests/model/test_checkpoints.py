"""Checkpoints and inputs that are damaged, hostile or wrong, and what may be done to a model between load and save."""

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import baichuan_hf
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.golden import TOLERANCE, load_golden, logits_difference


AUTO_CLASSES = [
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def make(family="rope", cls=baichuan_hf.BaichuanForCausalLM, **overrides):
    torch.manual_seed(0)
    return cls(tiny_config(initializer_range=0.2, **(FAMILIES[family] | overrides))).eval()


@pytest.fixture
def saved(tmp_path):
    """A folder with one weight file, as save_pretrained writes it."""
    folder = tmp_path / "checkpoint"
    make().save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    make().save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    return folder


@pytest.fixture
def bin_folder(tmp_path):
    """The three pickled shards of the golden Baichuan2-13B, copied."""
    folder = tmp_path / "bin"
    shutil.copytree(load_golden("baichuan2-13b").checkpoint, folder)
    folder.chmod(0o755)
    return folder


def load_error(folder, kind=Exception, **kwargs):
    with pytest.raises(kind) as error:
        AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    return str(error.value)


def test_folder_without_weights(saved):
    (saved / "model.safetensors").unlink()
    message = load_error(saved, OSError)
    assert str(saved) in message
    assert "model.safetensors" in message


def test_folder_without_config(saved):
    (saved / "config.json").unlink()
    assert "config.json" in load_error(saved, (OSError, ValueError))


@pytest.mark.parametrize("keep", [0, 4, 1000, -1], ids=lambda n: f"bytes-{n}")
def test_truncated_file(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = load_error(saved, OSError)
    assert "model.safetensors" in message
    assert "again" in message


@pytest.mark.parametrize("keep", [0, 100, -100], ids=lambda n: f"bytes-{n}")
def test_truncated_shard(bin_folder, sharded, keep):
    for folder, shard in (
        (bin_folder, bin_folder / "pytorch_model-00002-of-00003.bin"),
        (sharded, sorted(sharded.glob("*.safetensors"))[1]),
    ):
        shard.chmod(0o644)
        shard.write_bytes(shard.read_bytes()[:keep])
        assert shard.name in load_error(folder, OSError)


def test_shard_of_the_index_is_missing(bin_folder, sharded):
    for folder, shard in (
        (bin_folder, bin_folder / "pytorch_model-00002-of-00003.bin"),
        (sharded, sorted(sharded.glob("*.safetensors"))[1]),
    ):
        shard.unlink()
        assert shard.name in load_error(folder, OSError)


def test_shard_is_missing_in_the_index(sharded):
    """Its file is there, but transformers reads what the index lists only: the layer would be left at random."""
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = content["weight_map"]["model.layers.1.self_attn.W_pack.weight"]
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != lost}
    index.write_text(json.dumps(content))
    message = load_error(sharded, OSError)
    assert "model.layers.1" in message
    assert "index" in message


def test_damaged_index(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text()[:100])
    assert index.name in load_error(sharded, OSError)


def test_weight_file_is_a_git_lfs_pointer(saved):
    (saved / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"
    )
    message = load_error(saved, OSError)
    assert "model.safetensors" in message
    assert "lfs pull" in message


def test_layers_without_weights(saved):
    weights = {name: w for name, w in load_file(saved / "model.safetensors").items() if "layers.1.mlp" not in name}
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp" in load_error(saved, OSError)


def test_config_of_another_model(saved):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="llama"):
        baichuan_hf.BaichuanForCausalLM.from_pretrained(saved)
    with pytest.raises(ValueError, match="llama"):
        baichuan_hf.BaichuanConfig.from_pretrained(saved)


@pytest.mark.parametrize(
    "changes, key, shapes",
    [
        ({"vocab_size": 130}, ".weight", ["(128, 64)", "(130, 64)"]),
        ({"intermediate_size": 100}, "mlp", ["(64, 96)", "(64, 100)"]),
        ({"hidden_size": 128}, "weight", ["64", "128"]),
        ({"num_attention_heads": 2, "head_dim": 16}, "self_attn", ["(192, 64)", "(96, 64)"]),
    ],
    ids=["vocab_size", "intermediate_size", "hidden_size", "num_attention_heads"],
)
def test_weights_contradict_the_config(saved, changes, key, shapes):
    """The error names a weight, its shape in the file and by the config, and the field that is likely wrong."""
    path = saved / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("head_dim", "num_key_value_heads")}
    path.write_text(json.dumps(config | changes))
    message = load_error(saved, (RuntimeError, ValueError))
    assert key in message
    for shape in shapes:
        assert shape in message
    assert next(iter(changes)) in message


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain-pickle"])
def test_pickle_that_runs_code(saved, tmp_path, zipped):
    marker = tmp_path / "executed"
    content = dict(load_file(saved / "model.safetensors")) | {"model.extra": Exploit(marker)}
    (saved / "model.safetensors").unlink()
    path = saved / "pytorch_model.bin"
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = load_error(saved, (OSError, pickle.UnpicklingError))
    assert not marker.exists()
    assert "pytorch_model.bin" in message
    assert "code" in message


@pytest.mark.parametrize("trust", [None, False, True], ids=["default", "no-trust", "trust"])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda c: c.__name__)
def test_code_in_the_folder_never_runs(saved, tmp_path, auto_class, trust):
    marker = tmp_path / "executed"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    code += "from transformers import PreTrainedConfig, PreTrainedModel\n"
    for name in ("configuration_baichuan", "modeling_baichuan"):
        (saved / f"{name}.py").write_text(
            code + "class BaichuanConfig(PreTrainedConfig): model_type = 'baichuan'\n"
            "class BaichuanForCausalLM(PreTrainedModel): config_class = BaichuanConfig\n"
        )
    path = saved / "config.json"
    auto_map = {c.__name__: "modeling_baichuan.BaichuanForCausalLM" for c in AUTO_CLASSES}
    auto_map["AutoConfig"] = "configuration_baichuan.BaichuanConfig"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    model = auto_class.from_pretrained(saved, trust_remote_code=trust)
    assert type(model).__module__.startswith("baichuan_hf.")
    assert type(AutoConfig.from_pretrained(saved, trust_remote_code=trust)) is baichuan_hf.BaichuanConfig
    assert not marker.exists()
    model.save_pretrained(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize("auto_class", AUTO_CLASSES[1:], ids=lambda c: c.__name__)
def test_backbone_alone_is_loaded_into_a_head(tmp_path, auto_class):
    """BaichuanModel writes its weights without the prefix `model.`."""
    backbone = make(cls=baichuan_hf.BaichuanModel)
    backbone.save_pretrained(tmp_path)
    model = auto_class.from_pretrained(tmp_path)
    for name, weight in backbone.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight), name


def test_another_number_of_labels(tmp_path):
    make(cls=baichuan_hf.BaichuanForSequenceClassification, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as error:
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    for part in ("score.weight", "(2, 64)", "(3, 64)", "num_labels"):
        assert part in str(error.value)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.score.weight.shape == (3, 64)
    assert model.score.weight.isfinite().all()


def test_layers_on_the_disk(tmp_path):
    """`device_map` moves weights in for each layer: the head must not remember what is no longer there."""
    golden = load_golden("baichuan2-13b")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.positions": "cpu", "lm_head": "disk"}
    places |= {f"model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    model = golden.load(device_map=places, offload_folder=tmp_path).eval()
    with torch.no_grad():
        for _ in range(2):
            logits = model(golden.tensors["input_ids"]).logits
            assert logits_difference(logits, golden.tensors["logits"]) < TOLERANCE


# Inputs


@pytest.mark.parametrize("bad", [128, 5000, -1], ids=["one-more", "far", "negative"])
def test_ids_outside_the_vocabulary(bad):
    with pytest.raises(ValueError, match="input_ids") as error:
        make()(torch.tensor([[5, bad, 7]]))
    assert str(bad) in str(error.value)
    assert "vocab_size" in str(error.value)
    assert "127" in str(error.value)


def test_neither_or_both_inputs():
    model = make()
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="input_ids"):
        model()
    with pytest.raises(ValueError, match="input_ids"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_fully_masked_row(family, attention):
    """Its logits mean nothing but are finite, and the other rows are as without it; so are their gradients."""
    model = make(family)
    model.set_attn_implementation(attention)
    torch.manual_seed(1)
    ids = torch.randint(3, 128, (3, 6))
    mask = torch.tensor([[1] * 6, [0] * 6, [0, 0, 1, 1, 1, 1]])
    rows = torch.tensor([0, 2])
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    alone = model(ids[rows], attention_mask=mask[rows]).logits
    assert (logits[rows] - alone)[mask[rows].bool()].abs().max() < TOLERANCE

    model.train()
    labels = torch.where(mask.bool(), ids, -100)
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_a_fully_masked_row_in_half_precision(family, attention, dtype):
    """So long that bias and mask together leave the range of float16."""
    model = make(family, max_position_embeddings=512).to(dtype)
    model.set_attn_implementation(attention)
    ids = torch.randint(3, 128, (2, 400), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0] = 0
    mask[1, :50] = 0
    with torch.no_grad():
        assert model(ids, attention_mask=mask).logits.isfinite().all()


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "paged|flash_attention_2"])
@pytest.mark.parametrize("way", ["from_pretrained", "config", "set_attn_implementation"])
def test_alibi_refuses_backends_that_drop_the_bias(tmp_path, attention, way):
    model = make("alibi")
    with pytest.raises((ValueError, ImportError)) as error:
        if way == "from_pretrained":
            model.save_pretrained(tmp_path)
            AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
        elif way == "config":
            AutoModelForCausalLM.from_config(model.config, attn_implementation=attention)
        else:
            model.set_attn_implementation(attention)
    assert "ALiBi" in str(error.value)
    assert "sdpa" in str(error.value)


# Saving


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files with setrlimit")
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"], ids=["one-file", "sharded"])
def test_disk_full_while_saving(tmp_path, shard_size):
    """A write fails half way (the limit on the size of a file stands for a full disk): the old files stay."""
    folder = tmp_path / "checkpoint"
    make().save_pretrained(folder, max_shard_size=shard_size)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    script = f"""
import resource, signal, torch
from transformers import AutoModelForCausalLM
import baichuan_hf
model = AutoModelForCausalLM.from_pretrained({str(folder)!r})
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
model.save_pretrained({str(folder)!r}, max_shard_size={shard_size!r})
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "Error" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_fewer_shards_leaves_no_old_ones(sharded):
    model = AutoModelForCausalLM.from_pretrained(sharded)
    model.save_pretrained(sharded)
    assert [path.name for path in sharded.glob("*.safetensors*")] == ["model.safetensors"]
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(sharded).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_save_and_load_keep_every_bit(family, tmp_path, dtype):
    model = make(family).to(dtype)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == dtype
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


def test_loading_leaves_nothing_uninitialised(family, tmp_path):
    """Loaded through the meta device, with a head that the file lacks; torch.empty returns NaN in the tests."""
    make(family).save_pretrained(tmp_path)
    for auto_class in AUTO_CLASSES:
        model = auto_class.from_pretrained(tmp_path)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        assert not [name for name, tensor in tensors.items() if tensor.is_meta or not tensor.isfinite().all()]
        with torch.no_grad():
            output = model.eval()(torch.tensor([[5, 6, 7]]))
        assert output[0].isfinite().all()


def test_a_new_model_follows_initializer_range(family):
    model = baichuan_hf.BaichuanForCausalLM(tiny_config(initializer_range=0.05, **FAMILIES[family]))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
    assert (model.model.embed_tokens.weight[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "overrides", [{}, {"position_embedding_type": "alibi", "num_attention_heads": 12}], ids=["rope", "alibi"]
)
def test_cast_model_keeps_its_positions_in_float32(tmp_path, overrides, dtype):
    """`model.half()`, as the READMEs of Baichuan have it, equals loading with that dtype, at far positions too."""
    model = make(hidden_size=48, **({"num_attention_heads": 4} | overrides), max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    torch.manual_seed(2)
    ids = torch.randint(3, 128, (1, 400))
    with torch.no_grad():
        cast = model.to(dtype)(ids).logits
        assert torch.equal(cast, loaded(ids).logits)
        exact = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
    near, far = ((cast - exact)[0, part].abs().mean() for part in (slice(0, 50), slice(350, 400)))
    assert far < 2 * near


# Resizing


@pytest.mark.parametrize("mean_resizing", [True, False], ids=["mean", "plain"])
def test_resized_vocabulary(family, tmp_path, mean_resizing):
    model = make(family)
    head = type(model.get_output_embeddings())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(140, mean_resizing=mean_resizing)
        logits = model(ids).logits
        assert type(model.get_output_embeddings()) is head
        assert model.config.vocab_size == 140
        assert logits.shape[-1] == 140
        assert torch.allclose(logits[..., :128], before, atol=1e-5)
        assert (model.get_output_embeddings().weight[128:].norm(dim=1) > 1e-3).all()
        assert (model.get_input_embeddings().weight[128:].norm(dim=1) > 1e-3).all()
        if FAMILIES[family].get("normalize_lm_head"):
            hidden = model.model(ids).last_hidden_state
            rows = torch.nn.functional.normalize(model.lm_head.weight, dim=-1)
            assert torch.allclose(logits, hidden @ rows.T, atol=1e-4)
    tokens = model.generate(torch.tensor([[5, 139, 7]]), max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 6)

    labels = torch.tensor([[5, 130, 139, 8]])
    model.train()(labels, labels=labels).loss.backward()
    assert model.lm_head.weight.grad[130].abs().sum() > 0

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again.get_output_embeddings()) is head
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_shrunk_vocabulary(family):
    model = make(family)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(100)
        assert torch.allclose(model(ids).logits, before[..., :100], atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normhead"])
def test_tied_embeddings(tmp_path, normalize):
    model = make(tie_word_embeddings=True, normalize_lm_head=normalize)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_normalised_head_does_not_change_its_weight():
    model = make("alibi-normhead")
    before = model.lm_head.weight.clone()
    ids = torch.tensor([[5, 6, 7, 8]])
    first = model(ids).logits
    model.train()(ids, labels=ids).loss.backward()
    assert torch.equal(model.lm_head.weight, before)
    with torch.no_grad():
        # Whatever remembers the norms must see a weight that is changed in place, replaced, or loaded.
        model.lm_head.weight[7] *= 3
        assert torch.allclose(model.eval()(ids).logits, first, atol=1e-5)
        model.lm_head.weight = torch.nn.Parameter(before * 5)
        assert torch.allclose(model(ids).logits, first, atol=1e-5)
        model.load_state_dict(make("alibi-normhead").state_dict())
        assert torch.allclose(model(ids).logits, first, atol=1e-5)
        rows = torch.nn.functional.normalize(before, dim=-1)
        assert torch.allclose(first, model.model(ids).last_hidden_state @ rows.T, atol=1e-4)
