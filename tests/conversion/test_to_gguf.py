"""Baichuan folders as GGUF, read back by the package gguf; llama.cpp itself reads them in test_llama_cpp.py."""

import json
from typing import get_args

import jinja2
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from baichuan_hf import BaichuanModel
from baichuan_hf.conversion.to_gguf import Quantization, convert_to_gguf
from baichuan_hf.model.sentencepiece_model import SentencePieceModel
from tests.helpers import FAMILIES, golden_folder, tiny_config
from tests.helpers.checkpoint import save_checkpoint


gguf = pytest.importorskip("gguf", reason="pip install 'baichuan-hf[gguf]'")

TYPES = {"F32": {"dtype": torch.float32}, "F16": {"dtype": torch.float16}, "BF16": {}, "Q8_0": {"quantize": "q8_0"}}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def expected_weights(folder):
    """The weights of a folder by GGUF's names, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, weights = model.config, model.state_dict()
    head = weights["lm_head.weight"]
    made = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": head / head.norm(dim=-1, keepdim=True) if config.normalize_lm_head else head,
    }
    for index in range(config.num_hidden_layers):
        layer, block = f"model.layers.{index}.", f"blk.{index}."
        for theirs, ours in LAYER.items():
            made[f"{block}{theirs}.weight"] = weights[f"{layer}{ours}.weight"]
        if config.fused_qkv:
            parts = weights[f"{layer}self_attn.W_pack.weight"].view(3, -1, config.hidden_size)
        else:
            parts = [weights[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv"]
        for part, weight in zip("qkv", parts, strict=True):
            if part != "v" and config.position_embedding_type == "rope":
                half = config.head_dim // 2
                # Rows 0 and half of a head, which transformers rotates together, become neighbours.
                heads = weight.split(config.head_dim)
                weight = torch.cat(
                    [torch.stack([head[i % 2 * half + i // 2] for i in range(2 * half)]) for head in heads]
                )
            made[f"{block}attn_{part}.weight"] = weight
    return made


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_reads_back(family, kind, tmp_path):
    folder = save_checkpoint(tmp_path / "src", hidden_size=64, intermediate_size=96, **FAMILIES[family])
    done = convert_to_gguf(folder, tmp_path / "model.gguf", **TYPES[kind])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(done.file).tensors}
    expected = expected_weights(folder)
    assert tensors.keys() == expected.keys()
    for name, weight in expected.items():
        stored = tensors[name].tensor_type
        assert stored.name == ("F32" if weight.ndim == 1 else kind)
        read = torch.from_numpy(gguf.quants.dequantize(tensors[name].data, stored).copy())
        assert read.shape == weight.shape
        if kind == "Q8_0" and weight.ndim == 2:
            largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
            # Half a step of 1/127 of the largest of 32, and the rounding of the step to float16.
            error = (read - weight).unflatten(-1, (-1, 32)).abs()
            assert (error <= largest * (0.5 / 127 + 2**-11) + 1e-9).all()
            assert error.max() > 0
        else:
            rounded = weight.to(DTYPES[stored.name]).float()
            tolerance = 2**-7 if name == "output.weight" and "normhead" in family else 0
            torch.testing.assert_close(read, rounded, atol=1e-7 if tolerance else 0, rtol=tolerance)


def test_quantised_rows_in_parts_are_the_same(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "src", hidden_size=64)
    whole = convert_to_gguf(folder, tmp_path / "whole.gguf", quantize="q8_0").file.read_bytes()
    monkeypatch.setattr("baichuan_hf.conversion.to_gguf.ROWS_AT_ONCE", 7)
    assert convert_to_gguf(folder, tmp_path / "parts.gguf", quantize="q8_0").file.read_bytes() == whole


@pytest.mark.parametrize("quantize", get_args(Quantization))
def test_types_that_gguf_quantises(quantize, tmp_path):
    """And what a block of 32 does not divide stays F16, and is named."""
    folder = save_checkpoint(tmp_path / "src", hidden_size=64, intermediate_size=80)
    done = convert_to_gguf(folder, tmp_path, quantize=quantize)
    reader = gguf.GGUFReader(done.file)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds[f"blk.{index}.ffn_down.weight"] for index in range(2)} == {"F16"}
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == kinds["output.weight"] == quantize.upper()
    assert done.lost == [
        f"2 matrices, first blk.0.ffn_down.weight, have rows that {quantize.upper()} does not divide: F16."
    ]
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{quantize.upper()}"]
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    stored = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    read = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
    # Uniform steps of n bits over a block leave an error of some 2^-n of its range.
    assert ((read - embeddings).norm() / embeddings.norm()).item() < 1.6 * 2 ** -int(quantize[1])


def fields_of(done):
    return {name: field.contents() for name, field in gguf.GGUFReader(done.file).fields.items()}


def test_sizes(tmp_path):
    settings = {"head_dim": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 77}
    rope = {"rope_type": "default", "rope_theta": 5e4}
    folder = save_checkpoint(tmp_path / "src", **settings, rope_parameters=rope)
    fields = fields_of(convert_to_gguf(folder, tmp_path / "model.gguf"))
    assert fields["general.architecture"] == "llama"
    sizes = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    assert sizes == {
        "vocab_size": 5000,
        "context_length": 77,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 24,
        "attention.value_length": 24,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "rope.dimension_count": 24,
        "rope.freq_base": 5e4,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
ALIBI = {"position_embedding_type": "alibi"}
ARCHITECTURES = {
    "7b": ({"num_hidden_layers": 32}, "baichuan"),
    "2-7b": ({"num_hidden_layers": 32, "normalize_lm_head": True}, "baichuan"),
    "13b": ({"num_hidden_layers": 40} | ALIBI, "baichuan"),
    "grouped": ({"num_hidden_layers": 32, "num_key_value_heads": 2}, "baichuan"),
    "deep-rope": ({"num_hidden_layers": 40}, "llama"),
    "flat-alibi": ({"num_hidden_layers": 32} | ALIBI, "refact"),
    "scaled-rope": ({"num_hidden_layers": 32, "rope_parameters": YARN}, "llama"),
    "biases": ({"num_hidden_layers": 32, "attention_bias": True}, "llama"),
    "wide-heads": ({"num_hidden_layers": 40, "head_dim": 12} | ALIBI, "refact"),
}


@pytest.mark.parametrize(("overrides", "architecture"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architecture(overrides, architecture, tmp_path):
    """llama.cpp's Baichuan has RoPE with 32 layers, ALiBi with 40, and with any other number no positions at all."""
    done = convert_to_gguf(save_checkpoint(tmp_path / "src", **overrides), tmp_path / "model.gguf")
    assert done.architecture == fields_of(done)["general.architecture"] == architecture


def test_scaled_rope_is_written_as_factors(tmp_path):
    folder = save_checkpoint(tmp_path / "src", rope_parameters=YARN, max_position_embeddings=128)
    reader = gguf.GGUFReader(convert_to_gguf(folder, tmp_path / "model.gguf").file)
    factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight").data
    expected, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.from_pretrained(folder), torch.device("cpu"))
    frequencies = torch.tensor([10000.0 ** (-2 * i / 8) for i in range(4)]) / torch.from_numpy(factors.copy())
    torch.testing.assert_close(frequencies, expected)
    stored = reader.fields["llama.rope.scaling.attn_factor"].contents()
    assert stored == pytest.approx(attention_factor) != 1


def render(template, messages):
    def refuse(message):
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True, eos_token="</s>")


CHAT = [
    {"role": "user", "content": "你好 "},
    {"role": "assistant", "content": " Hello\n"},
    {"role": "user", "content": "and?"},
]


@pytest.mark.parametrize("kind", ["baichuan-surrogate", pytest.param("baichuan2", marks=pytest.mark.slow)])
def test_tokenizer(kind, tmp_path):
    source = golden_folder(f"tokenizers/{kind}")
    tokenizer = AutoTokenizer.from_pretrained(source)
    folder = save_checkpoint(tmp_path / "src", vocab_size=len(tokenizer) + 3)
    tokenizer.save_pretrained(folder)
    fields = fields_of(convert_to_gguf(folder, tmp_path / "model.gguf"))
    model = SentencePieceModel.from_file(source / "tokenizer.model")
    size = len(model.pieces)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[size:] == [f"[PAD{size + index}]" for index in range(3)]
    assert types == [*model.types, *[gguf.TokenType.UNUSED] * 3]
    assert fields["tokenizer.ggml.scores"][:size] == pytest.approx(model.scores)
    assert tokens[:size] == model.pieces
    names = ("model", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_space_prefix")
    assert [fields[f"tokenizer.ggml.{name}"] for name in names] == ["llama", 1, 2, 0, False, False]
    expected = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert render(fields["tokenizer.chat_template"], CHAT) == expected


def test_added_tokens_and_template(tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<term>"])
    tokenizer.add_tokens(["<call>"], special_tokens=True)
    tokenizer.chat_template = "{%- generation %} {{ messages[0]['content'] }} {% endgeneration -%} ."
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="has 5002 tokens, the model 5000: give --vocab-size 5002"):
        convert_to_gguf(folder, tmp_path / "model.gguf")
    fields = fields_of(convert_to_gguf(folder, tmp_path / "model.gguf", vocab_size=5003))
    assert fields["tokenizer.ggml.tokens"][5000:] == ["<term>", "<call>", "[PAD5002]"]
    kinds = [gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED]
    assert fields["tokenizer.ggml.token_type"][5000:] == kinds
    assert render(fields["tokenizer.chat_template"], CHAT) == " 你好  ."
    assert fields["llama.vocab_size"] == 5003


def test_metadata_of_card_and_generation_settings(tmp_path):
    folder = save_checkpoint(tmp_path / "Baichuan9-Chat")
    data = ModelCardData(license="apache-2.0", language=["zh"], base_model="someone/Some-Base")
    ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n").save(folder / "README.md")
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 5, "repetition_penalty": 1.05}')
    done = convert_to_gguf(folder, tmp_path / "out")
    assert done.file == tmp_path / "out" / "Baichuan9-338K-Chat-BF16.gguf"
    fields = fields_of(done)
    assert fields["general.name"] == "Baichuan9 Chat"
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.languages"] == ["zh"]
    assert fields["general.base_model.0.repo_url"].endswith("/someone/Some-Base")
    sampling = [fields[f"general.sampling.{name}"] for name in ("temp", "top_k", "penalty_repeat")]
    assert sampling == [pytest.approx(0.3), 5, pytest.approx(1.05)]


def test_adapter_is_merged(tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["o_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    done = convert_to_gguf(folder, tmp_path / "model.gguf", dtype=torch.float32, adapter=tmp_path / "adapter")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(done.file).tensors}["blk.1.attn_output.weight"]
    merged = adapted.merge_and_unload().model.layers[1].self_attn.o_proj.weight.detach()
    torch.testing.assert_close(torch.from_numpy(stored.copy()), merged, atol=2e-3, rtol=2e-2)
    before = load_file(folder / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"].float()
    assert (merged - before).abs().max() > 0.1


REFUSED = {
    "norm": ({"norm_type": "layer_norm"}, "norm_type='layer_norm' cannot become one of llama.cpp's models"),
    "experts": ({"num_local_experts": 2}, "num_local_experts=2"),
    "window": ({"sliding_window": 4}, "sliding_window=4"),
    "activation": ({"hidden_act": "gelu"}, r"hidden_act='gelu' .* have 'silu'"),
    "positions": ({"position_embedding_type": "learned"}, r"='learned' .* have 'rope' or 'alibi'"),
    "alibi-scaling": (
        ALIBI | {"alibi_scaling": {"alibi_type": "ntk", "factor": 2.0}},
        r"alibi_scaling=\{.* have None",
    ),
    "alibi-bias": (ALIBI | {"mlp_bias": True}, "mlp_bias=True"),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "'dynamic'.* default, linear, yarn, llama3",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_has_no_equal_of_is_refused(overrides, message, tmp_path):
    folder = save_checkpoint(tmp_path / "src", **overrides)
    with pytest.raises(ValueError, match=message):
        convert_to_gguf(folder, tmp_path / "dst" / "model.gguf")
    assert not (tmp_path / "dst").exists()


def test_other_heads_and_models_are_refused(tmp_path):
    BaichuanModel(tiny_config()).save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match="src holds a BaichuanModel: only a BaichuanForCausalLM can become GGUF"):
        convert_to_gguf(tmp_path / "src", tmp_path / "model.gguf")
    (tmp_path / "src" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="has model_type 'llama'; this is for Baichuan models"):
        convert_to_gguf(tmp_path / "src", tmp_path / "model.gguf")


def test_tokenizer_files_that_are_missing_or_contradict(tmp_path):
    folder = save_checkpoint(tmp_path / "src")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (next(piece for piece, index in vocabulary.items() if index == number) for number in (4000, 4001))
    vocabulary[first], vocabulary[second] = 4001, 4000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ValueError, match=f"Token 4000 is {first!r} in .*tokenizer.model, but {second!r} in"):
        convert_to_gguf(folder, tmp_path / "model.gguf")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(OSError, match=r"src has no tokenizer\.model, from which"):
        convert_to_gguf(folder, tmp_path / "model.gguf")


def test_a_file_is_replaced_on_request_and_whole(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "src")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    file = convert_to_gguf(folder, tmp_path / "dst" / "model.gguf").file
    first = file.read_bytes()
    with pytest.raises(ValueError, match="exists already: name another file, or pass --overwrite"):
        convert_to_gguf(folder, file)
    for inside in (folder, folder / "model.gguf"):
        with pytest.raises(ValueError, match="is in the source, which is never changed: name another place"):
            convert_to_gguf(folder, inside)

    quantize, calls = gguf.quants.quantize, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quantize(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(gguf.quants, "quantize", interrupted)
        convert_to_gguf(folder, file, quantize="q4_0", overwrite=True)
    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"dst has 0\.0 GB free, the weights need"):
        patched.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        convert_to_gguf(folder, file, quantize="q4_0", overwrite=True)
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]
    assert file.read_bytes() == first
    convert_to_gguf(folder, file, quantize="q4_0", overwrite=True)
    assert file.stat().st_size < len(first)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
