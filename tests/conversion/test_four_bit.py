"""The files of Baichuan2-*-Chat-4bits, written as their quantizer.py and bitsandbytes 0.41 have them in memory."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from baichuan_hf import BaichuanForCausalLM, BaichuanTokenizer
from baichuan_hf.checking import check_folder
from baichuan_hf.conversion.baichuan_folders import convert_baichuan_folder
from baichuan_hf.conversion.to_gguf import convert_to_gguf
from tests.helpers import FAMILIES, golden_folder, tiny_config


IDS = torch.arange(3, 60).reshape(3, 19)
# bitsandbytes.functional.create_normal_map: the 16 numbers of nf4, and a code book for the scales.
NF4 = torch.tensor(
    [-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0]
    + [0.07958030, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1]
)
SCALES = torch.linspace(-1, 1, 256)
QUANTISED = ("W_pack", "o_proj", "gate_proj", "down_proj", "up_proj")
# The config.json of Baichuan2-7B-Chat-4bits, of before `quant_method`.
QUANTIZATION = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def nearest(values, code):
    return (values[:, None] - code).abs().argmin(1).to(torch.uint8)


def quantise(weight, nested=True):
    """Packed numbers and state as bitsandbytes 0.41 keeps them, and the weight that they stand for, block by block."""
    blocks = weight.float().flatten().split(64)
    absmax = torch.stack([block.abs().max() for block in blocks])
    inner = None
    if nested:
        offset = absmax.mean()
        parts = (absmax - offset).split(256)
        tops = torch.stack([part.abs().max() for part in parts])
        stored = torch.cat([nearest(part / top, SCALES) for part, top in zip(parts, tops, strict=True)])
        inner = [offset, [tops, SCALES, 256, False, torch.float32, None, None]]
        scales = [SCALES[int(number)] * tops[index // 256] + offset for index, number in enumerate(stored)]
    else:
        stored, scales = absmax, list(absmax)
    numbers = [nearest(block / scale, NF4) for block, scale in zip(blocks, scales, strict=True)]
    plain = torch.cat([NF4[n.int()] * scale for n, scale in zip(numbers, scales, strict=True)])
    high, low = torch.cat(numbers).view(-1, 2).T
    state = [stored, weight.shape, weight.dtype, 64, inner, "nf4", NF4]
    return (high << 4 | low)[:, None], state, plain.to(weight.dtype).view(weight.shape)


def save(folder, nested=True, **overrides):
    """A folder in that layout, and the weights that it stands for."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 128, "initializer_range": 0.2, "dtype": "float16"}
    model = BaichuanForCausalLM(tiny_config(**sizes | overrides)).half()
    model.config.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": QUANTIZATION}))
    content, plain = {}, {}
    for name, weight in model.state_dict().items():
        if name.endswith(tuple(f"{module}.weight" for module in QUANTISED)):
            content[f"{name}.data"], content[f"{name}.quant_state"], plain[name] = quantise(weight, nested)
        else:
            content[name] = torch.nn.Parameter(weight)
            plain[name] = weight
    torch.save(content, folder / "pytorch_model.bin")
    return plain


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def plain_model(plain, **overrides):
    """In float32, with these weights."""
    model = BaichuanForCausalLM(tiny_config(intermediate_size=128, **overrides)).eval()
    model.load_state_dict({name: weight.float() for name, weight in plain.items()})
    return model


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("family", ["rope-normhead", "alibi-normhead"])
def test_to_plain_weights(family, nested, tmp_path):
    plain = save(tmp_path / "src", nested, **FAMILIES[family])
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan", dtype=torch.float32)
    assert done.left_out == []
    assert done.parameters == sum(weight.numel() for weight in plain.values())
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "dst").state_dict()
    assert converted.keys() == plain.keys()
    for name, weight in plain.items():
        assert torch.equal(converted[name], weight.float()), name
    assert "quantization_config" not in json.loads((tmp_path / "dst" / "config.json").read_text())


def test_to_llama(tmp_path):
    plain = save(tmp_path / "src", normalize_lm_head=True)
    convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="llama")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32)
    expected = logits(plain_model(plain, normalize_lm_head=True))
    # The folded head is rounded to float16 once more.
    torch.testing.assert_close(logits(llama), expected, atol=2e-2, rtol=0)


def test_to_gguf(tmp_path):
    gguf = pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")
    plain = save(tmp_path / "src", vocab_size=5000)
    BaichuanTokenizer.from_pretrained(golden_folder("tokenizers/baichuan-surrogate")).save_pretrained(tmp_path / "src")
    done = convert_to_gguf(tmp_path / "src", tmp_path / "model.gguf")
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(done.file).tensors}
    for index in range(2):
        assert torch.equal(stored[f"blk.{index}.ffn_up.weight"], plain[f"model.layers.{index}.mlp.up_proj.weight"])


@pytest.mark.parametrize("nested", [True, False], ids=["double", "single"])
def test_to_files_of_today(nested, tmp_path):
    """The same bits, in the files that bitsandbytes reads now."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="pip install 'baichuan-hf[quantization]'")
    plain = save(tmp_path / "src", nested, normalize_lm_head=True)
    done = convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan")
    assert done.parameters == sum(weight.numel() for weight in plain.values())
    assert "stay in four bits" in done.lost[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype=torch.float32)
    for name, weight in plain.items():
        loaded = model.get_parameter(name)
        if name.endswith(tuple(f"{module}.weight" for module in QUANTISED)):
            assert loaded.dtype == torch.uint8
            loaded = functional.dequantize_4bit(loaded.data, loaded.quant_state)
        assert torch.equal(loaded.float(), weight.float()), name
    assert type(model.lm_head).__name__ == "NormHead"
    expected = logits(plain_model(plain, normalize_lm_head=True))
    # It computes in float16, as the original did.
    torch.testing.assert_close(logits(model).float(), expected, atol=0.1, rtol=0)
    assert check_folder(tmp_path / "dst").ok


def test_what_bitsandbytes_packs_is_read(tmp_path):
    """Its own numbers, and its own way back."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="pip install 'baichuan-hf[quantization]'")
    from baichuan_hf.conversion.four_bit import dequantized

    weight = torch.randn(100, 192)  # 300 blocks of 64, which are no multiple of 256
    for kind in ("nf4", "fp4"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            given = weight.to(dtype)
            packed, state = functional.quantize_4bit(given, quant_type=kind, compress_statistics=True, blocksize=64)
            inner = [state.state2.absmax, state.state2.code, state.state2.blocksize, False, torch.float32, None, None]
            listed = [state.absmax, given.shape, dtype, 64, [state.offset, inner], kind, state.code]
            assert torch.equal(dequantized(packed, listed), functional.dequantize_4bit(packed, state)), (kind, dtype)


@pytest.mark.parametrize("installed", [True, False], ids=["bitsandbytes", "without"])
def test_loading_such_a_folder_names_the_command(installed, tmp_path, monkeypatch):
    if installed:
        pytest.importorskip("bitsandbytes", reason="pip install 'baichuan-hf[quantization]'")
    else:
        monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    save(tmp_path)
    with pytest.raises(OSError, match=rf"bitsandbytes 0\.41 .* baichuan-hf convert {tmp_path} DST --to baichuan"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_check_says_the_same(tmp_path):
    save(tmp_path)
    (error,) = (finding for finding in check_folder(tmp_path).findings if finding.level == "error")
    assert "four bits" in error.what and "baichuan-hf convert" in error.way_out


@pytest.mark.parametrize("entry", [None, "missing"], ids=["short", "no-data"])
def test_states_of_another_form_are_refused(entry, tmp_path):
    save(tmp_path / "src")
    file = tmp_path / "src" / "pytorch_model.bin"
    content = torch.load(file)
    if entry == "missing":
        del content["model.layers.0.mlp.up_proj.weight.data"]
    else:
        content["model.layers.0.mlp.up_proj.weight.quant_state"].pop()
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"up_proj\.weight\.quant_state is not the state of .* in seven entries"):
        convert_baichuan_folder(tmp_path / "src", tmp_path / "dst", to="baichuan")
    assert not (tmp_path / "dst").exists()


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from baichuan_hf.cli.main import app

    save(tmp_path / "src")
    words = ["convert", str(tmp_path / "src"), str(tmp_path / "dst"), "--to", "baichuan", "--dtype", "bfloat16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "bfloat16" in result.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dst").dtype == torch.bfloat16
