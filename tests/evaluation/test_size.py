"""The counts of `measure` against real models, tensors and torch's own counter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from baichuan_hf import BaichuanConfig
from baichuan_hf.evaluation import build_on_meta, measure
from baichuan_hf.evaluation.size import NF4_BYTES, flops_per_token, kept_per_token, kv_cache_bytes
from tests.helpers import tiny_config


GPT = {
    "position_embedding_type": "learned",
    "norm_type": "layer_norm",
    "norm_bias": True,
    "gated_mlp": False,
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
ENCODER = GPT | {"is_causal": False}
ARCHITECTURES = {
    "llama": {},
    "grouped": {"num_key_value_heads": 2},
    "gpt": GPT,
    "relu": GPT | {"hidden_act": "relu"},
    "gelu_new": GPT | {"hidden_act": "gelu_new"},
    "deep_norm": {"norm_type": "deep_norm", "norm_position": "post"},
    "cross": {"add_cross_attention": True},
    "experts": {"num_local_experts": 4, "intermediate_size": 64},
    "encoder": ENCODER | {"type_vocab_size": 2},
    "relative": ENCODER | {"position_embedding_type": "relative"},
    "linformer": ENCODER | {"attention_type": "linformer", "projected_length": 32},
    "performer": ENCODER | {"attention_type": "performer"},
    "longformer": ENCODER | {"sliding_window": 16, "num_global_tokens": 1},
}


def build(overrides, **more):
    config = tiny_config(max_position_embeddings=256, **overrides, **more)
    torch.manual_seed(0)
    return type(build_on_meta(config))(config)


def inputs_of(model, length):
    ids = torch.randint(0, model.config.vocab_size, (1, length))
    if not model.config.is_causal:
        return {"input_ids": ids}
    states = {"encoder_hidden_states": torch.randn(1, length, model.config.hidden_size, requires_grad=True)}
    return {"input_ids": ids, "use_cache": False, **(states if model.config.add_cross_attention else {})}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"longformer"}))
def test_operations_are_those_that_torch_counts(name):
    model = build(ARCHITECTURES[name])
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # the others are not among torch's formulas
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs_of(model, 256))
    assert flops_per_token(model, 256) == pytest.approx(counter.get_total_flops() / 256, rel=0.02)


def test_window_bounds_the_operations_of_attention():
    width = 64
    matrices = flops_per_token(build_on_meta(tiny_config()), 0)

    def attention(length, **overrides):
        return flops_per_token(build_on_meta(tiny_config(**overrides)), length) - matrices

    assert attention(100, sliding_window=16) == 2 * 4 * width * 16
    assert attention(10, sliding_window=16) == 2 * 4 * width * 10 == attention(10)
    one = ["full_attention", "sliding_attention"]
    assert attention(100, sliding_window=16, layer_types=one) == 4 * width * (100 + 16)


@pytest.mark.parametrize("name", ["llama", "grouped", "gpt"])
@pytest.mark.parametrize("window", [None, 16], ids=["full", "sliding"])
def test_cache_is_as_large_as_the_real_one(name, window):
    model = build(ARCHITECTURES[name], sliding_window=window).to(torch.bfloat16)
    ids = torch.randint(0, 128, (3, 40))
    cache = model(ids).past_key_values
    model(ids[:, :1], past_key_values=cache)  # a slice of the prompt's keys is freed with the next step
    stored = {tensor.untyped_storage() for layer in cache.layers for tensor in (layer.keys, layer.values)}
    assert sum(storage.nbytes() for storage in stored) == 3 * kv_cache_bytes(model.config, 41, torch.bfloat16)
    assert kv_cache_bytes(build_on_meta(tiny_config(is_causal=False)).config, 41, torch.bfloat16) == 0


def kept_bytes(model, dtype, length):
    """Bytes that autograd holds after the forward pass, other than weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = inputs_of(model, length)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        model(**inputs, labels=inputs["input_ids"])
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in weights)


def kept_per_token_in_three_layers(make_model, dtype):
    """Without what does not grow with both, such as copies of the weights and the logits."""
    one, four = (make_model(num_hidden_layers=layers).train() for layers in (1, 4))
    long, short = (kept_bytes(four, dtype, length) - kept_bytes(one, dtype, length) for length in (250, 150))
    return (long - short) / 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"relative"}))  # on a CPU its scores are a matrix
def test_activations_are_what_autograd_keeps(name, dtype):
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 688}
    overrides = sizes | ARCHITECTURES[name]
    if "num_local_experts" in overrides:
        overrides["intermediate_size"] = 256
    measured = kept_per_token_in_three_layers(lambda **more: build(overrides, **more), dtype)
    assert kept_per_token(build(overrides, num_hidden_layers=3), dtype) == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "grouped", "gpt"])
def test_activations_under_adapters(name, dtype):
    overrides = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 688} | ARCHITECTURES[name]

    def adapted(**more):
        return get_peft_model(build(overrides, **more).to(dtype), LoraConfig(task_type="CAUSAL_LM", r=4))

    measured = kept_per_token_in_three_layers(adapted, dtype)
    assert kept_per_token(build(overrides, num_hidden_layers=3), dtype, frozen=True) == pytest.approx(
        measured, rel=0.2
    )


def test_every_other_layer_with_experts():
    model = build_on_meta(tiny_config(num_hidden_layers=4, num_local_experts=4, moe_layer_interval=2))
    kept = kept_per_token(model, torch.float32)
    ends = [build_on_meta(tiny_config(num_hidden_layers=4, num_local_experts=experts)) for experts in (0, 4)]
    assert kept == sum(kept_per_token(end, torch.float32) for end in ends) / 2


@pytest.mark.parametrize("name", ["llama", "grouped", "gpt", "cross", "experts", "encoder"])
def test_adapters_are_those_of_peft(name):
    model = build(ARCHITECTURES[name])
    size = measure(model.config, lora_r=4)
    trained, _ = get_peft_model(model, LoraConfig(r=4)).get_nb_trainable_parameters()
    assert size["parameters"]["lora"] == trained
    assert size["memory"]["train_lora"]["gradients"] == 4 * trained


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_are_the_whole(name):
    model = build(ARCHITECTURES[name])
    parameters = measure(model.config)["parameters"]
    parts = {"embeddings", "attention", "feed_forward", "norms", "head"}
    assert sum(parameters[part] for part in parts) == parameters["total"]
    assert parameters["total"] == sum(parameter.numel() for parameter in model.parameters())
    layer = model.base_model.layers[0]
    assert parameters["feed_forward"] == 2 * sum(parameter.numel() for parameter in layer.mlp.parameters())
    head = {id(parameter): parameter.numel() for parameter in model.lm_head.parameters()}
    head.pop(id(model.get_input_embeddings().weight), None)
    assert parameters["head"] == sum(head.values())


def test_active_parameters_of_experts():
    """Mixtral of Experts (Jiang et al. 2024): 47 billion parameters, of which a token uses 13 billion."""
    parameters = measure(BaichuanConfig.from_preset("mixtral-8x7b"))["parameters"]
    experts = 32 * 8 * 3 * 4096 * 14336
    assert parameters["active"] == parameters["total"] - experts * 6 // 8 == 12_879_925_248


def test_feed_forward_is_two_thirds_of_the_classic_layer():
    parameters = measure(BaichuanConfig.from_preset("gpt2"))["parameters"]
    assert parameters["feed_forward"] / (parameters["feed_forward"] + parameters["attention"]) == pytest.approx(
        2 / 3, abs=1e-3
    )


def test_memory_of_a_7b_model():
    """Rules of thumb: 2 bytes a weight to serve in half precision; 18 to train in mixed precision (Rajbhandari et al.
    2020 count 16 to 20); about half a byte under QLoRA."""
    size = measure(BaichuanConfig.from_preset("llama-2-7b"), batch_size=2, length=1024)
    total, memory = size["parameters"]["total"], size["memory"]
    assert memory["serve"]["weights"] == 2 * total
    assert memory["serve"]["kv_cache"] == 2 * 1024 * size["kv_cache"]["per_token"] == 2 * size["kv_cache"]["per_text"]
    states = ("weights", "gradients", "optimizer")
    assert sum(memory["train_full"][state] for state in states) == 18 * total
    matrices = size["parameters"]["attention"] + size["parameters"]["feed_forward"]
    assert memory["train_qlora"]["weights"] == pytest.approx(0.516 * matrices + 4 * (total - matrices), rel=0.01)
    for row in memory.values():
        assert row["total"] == sum(value for name, value in row.items() if name != "total")


def test_nf4_is_as_large_as_the_real_one():
    functional = pytest.importorskip("bitsandbytes.functional", reason="pip install 'baichuan-hf[quantization]'")
    weight = torch.randn(512, 1024)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes == weight.numel() * NF4_BYTES


@pytest.mark.parametrize("preset", ["baichuan2-13b", "glm-130b", "vit-base", "t5-encoder-base", "transformer-base"])
def test_any_preset_is_measured(preset):
    size = measure(BaichuanConfig.from_preset(preset), length=128, dtype=torch.float32)
    assert size["memory"]["train_full"]["weights"] == 4 * size["parameters"]["total"]
    assert size["flops_per_token"]["training"] == 3 * size["flops_per_token"]["forward"]


def test_length_beyond_learned_positions_is_refused():
    assert measure(tiny_config(), length=1000)["settings"]["length"] == 1000
    with pytest.raises(ValueError, match=r"length \(1000\) is beyond max_position_embeddings \(128\)"):
        measure(tiny_config(position_embedding_type="learned"), length=1000)
