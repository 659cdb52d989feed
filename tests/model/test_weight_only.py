"""One token through weights of 8 and 4 bits: our kernels against torchao's numbers, alone and in a compiled step."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import StaticCache

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model.feed_forward import GatedFeedForward
from baichuan_hf.model.weight_only import (
    FEW_TOKENS,
    Int4Linear,
    Int8Linear,
    Replacement,
    WeightOnlyGatedFeedForward,
    adopt_int4,
    replaced,
    weight_only_layers,
)
from tests.helpers import tiny_config
from tests.helpers.decoding import partwise_traced
from tests.helpers.kernels import device, interpreted, needs_kernels, run_under_the_interpreter


torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install 'baichuan-hf[torchao]'")

# Inputs and outputs; the interpreter takes its time for more.
SIZES = ((128, 256), (1152, 128))
# Sums are float32's; what is stored is rounded to bfloat16.
ROUNDING = 2**-8


def test_kernels_under_the_interpreter():
    run_under_the_interpreter(__file__)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("columns", [4096, 11008])
def test_kernels_compile(columns, gated, capability):
    """To machine code of GPUs, with the instructions that the interpreter knows nothing of."""
    triton = pytest.importorskip("triton", reason="needs Triton: pip install triton")
    if interpreted():
        pytest.skip("nothing is compiled under the interpreter")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from baichuan_hf.model import matvec_kernels as kernels

    types = dict.fromkeys(("inputs", "norm", "residual", "out", "pairs", "up_pairs"), "*bf16")
    types |= dict.fromkeys(("scale", "up_scale", "planes"), "*fp32") | {"eps": "fp32"}
    types |= dict.fromkeys(("num_rows", "stride"), "i32")
    even = columns == 4096
    quads = 1024 if even else 256
    product = {"GATED": gated, "RESIDUAL": not gated, "EVEN": even}
    padded = 4096 if even else 11264
    constants = {
        kernels._int8_kernel: product | {"SIZE": columns // 4, "BLOCK": 1024, "NORM": gated},
        kernels._int4_kernel: product | {"SIZE": columns // 8, "PADDED": padded, "GROUP": 32, "QUADS": quads},
        kernels._int4_planes_kernel: {"SIZE": columns, "ALL": 16384, "BLOCK": 512, "NORM": gated},
    }
    for kernel, values in constants.items():
        words = "*i8" if kernel is kernels._int8_kernel else "*i32"
        signature = {name: types.get(name, words) for name in kernel.arg_names} | dict.fromkeys(values, "constexpr")
        source = ASTSource(
            kernel, signature, {(kernel.arg_names.index(name),): value for name, value in values.items()}
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        assert ("prmt.b32" in compiled.asm["ptx"]) == ("GATED" in values) and len(compiled.asm["cubin"]) > 1000


def int4_weight(rows: int, columns: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight as torchao packs it, which it does on a GPU alone, and its numbers."""
    from torchao.quantization.quantize_.workflows import Int4TilePackedTo4dTensor

    padded = -(-columns // 1024) * 1024
    numbers = torch.randint(0, 16, (rows, padded))
    pairs = (torch.randn(padded // group, rows, 2) / 30).bfloat16()
    scale, zero = (pairs[..., i].float().repeat_interleave(group, 0).T for i in (0, 1))
    # Of 32 inputs a lane has a neighbouring pair in each eight; the first of all pairs come first.
    nibbles = numbers.view(rows // 8, 8, padded // 128, 4, 2, 2, 4, 2).permute(0, 2, 1, 6, 3, 7, 4, 5)
    words = (nibbles.reshape(rows // 8, padded // 128, 32, 4, 8) << torch.arange(0, 32, 4)).sum(-1)
    words = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
    weight = Int4TilePackedTo4dTensor(words, pairs, [1, group], torch.Size((rows, columns))).to(device())
    return weight, ((numbers - 8) * scale + zero)[:, :columns].to(device())


def quantise(layer: nn.Linear, kind: str) -> torch.Tensor:
    """Give a layer a weight of that kind, and say which numbers it holds."""
    if kind == "int8":
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
        return layer.weight.dequantize().float()
    weight, numbers = int4_weight(*layer.weight.shape, int(kind.removeprefix("int4-")))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return numbers


def close(found: torch.Tensor, expected: torch.Tensor, roundings: int = 1) -> bool:
    return bool((found.float() - expected).norm() <= roundings * ROUNDING * expected.norm())


KINDS = ("int8", "int4-32", "int4-64", "int4-128")


@needs_kernels
@pytest.mark.parametrize(("columns", "rows"), [*SIZES, (3072, 16), (4096, 16), (4224, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product(kind, columns, rows):
    torch.manual_seed(columns)
    layer = nn.Linear(columns, rows, bias=columns == 128, device=device(), dtype=torch.bfloat16).requires_grad_(False)
    numbers = quantise(layer, kind)
    inputs = torch.randn(1, 1, columns, device=device(), dtype=torch.bfloat16)
    with replaced(weight_only_layers(layer)):
        assert type(layer) is (Int8Linear if kind == "int8" else Int4Linear)
        found = layer(inputs)
    assert type(layer) is nn.Linear
    assert found.shape == (1, 1, rows) and found.dtype == torch.bfloat16
    expected = inputs.float() @ numbers.T
    assert close(found, expected if layer.bias is None else expected + layer.bias, roundings=2)


@needs_kernels
@pytest.mark.parametrize("size", [128, 5120])
def test_normalised_planes(size):
    from baichuan_hf.model.matvec_kernels import int4_planes

    torch.manual_seed(size)
    inputs, weight = torch.randn(2, size, device=device(), dtype=torch.bfloat16)
    normalised = F.rms_norm(inputs.float(), (size,), weight.float(), 1e-6)
    expected = normalised.view(-1, 4, 2, 2, 4, 2).permute(5, 2, 3, 0, 4, 1).reshape(8, -1)
    found = int4_planes(inputs, weight, 1e-6)
    assert torch.allclose(found, expected, rtol=2 * ROUNDING, atol=0)  # the interpreter cuts numbers off
    assert torch.equal(found, found.bfloat16().float())


@needs_kernels
@pytest.mark.parametrize(("columns", "rows", "size"), [(*SIZES[0], 300.0), (*SIZES[1], 1e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_feed_forward_layer(kind, columns, rows, size):
    """Gate, up and what is between as one product; with inputs that are small, large, and of a mean beside zero."""
    torch.manual_seed(columns)
    layer = GatedFeedForward(columns, rows, activation="silu", bias=False).to(device(), torch.bfloat16)
    layer.requires_grad_(False)
    gate, up, down = (quantise(part, kind) for part in (layer.gate_proj, layer.up_proj, layer.down_proj))
    inputs = (size * torch.randn(1, columns, device=device()) + size / 2).bfloat16()
    layers = weight_only_layers(layer)
    assert layers[layer].kind is WeightOnlyGatedFeedForward
    with replaced(layers):
        found = layer(inputs)
    expected = (F.silu(inputs.float() @ gate.T) * (inputs.float() @ up.T)) @ down.T
    assert close(found, expected, roundings=3)


@needs_kernels
@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_many_tokens(kind, columns, rows):
    """By the numbers of the weight; not for gradients, which torchao has none of, nor with a weight put in later."""
    torch.manual_seed(columns)
    layer = nn.Linear(columns, rows, device=device(), dtype=torch.bfloat16).requires_grad_(False)
    numbers = quantise(layer, kind)
    adopt_int4(layer)
    assert type(layer) is Int4Linear
    inputs = torch.randn(3, 40, columns, device=device(), dtype=torch.bfloat16)
    assert close(layer(inputs), inputs.float() @ numbers.T + layer.bias, roundings=2)
    with pytest.raises(RuntimeError):
        layer(inputs.requires_grad_(True)).sum().backward()
    layer.weight = nn.Parameter(numbers.bfloat16())
    assert torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))


@needs_kernels
def test_what_stays_torchaos():
    """More tokens than one, other dtypes and activations, what somebody listens to, and other formats."""
    torch.manual_seed(0)
    layer = GatedFeedForward(128, 256, activation="silu", bias=False).to(device(), torch.bfloat16)
    layer.requires_grad_(False)
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    adopt_int4(layer)
    assert type(layer.gate_proj) is nn.Linear
    for shape, dtype in (((2, 128), torch.bfloat16), ((1, 128), torch.float32)):
        inputs = torch.randn(shape, device=device(), dtype=dtype)
        expected = layer(inputs)
        with replaced(weight_only_layers(layer)):
            assert torch.equal(layer(inputs), expected)

    heard = []
    handle = layer.up_proj.register_forward_hook(lambda *_: heard.append(1))
    layers = weight_only_layers(layer)
    assert layer not in layers and layer.up_proj in layers
    with replaced(layers):
        layer(torch.randn(1, 128, device=device(), dtype=torch.bfloat16))
    assert heard
    handle.remove()
    layer.activation = "gelu"
    assert layer not in weight_only_layers(layer)

    dynamic = nn.Linear(128, 128, device=device(), dtype=torch.bfloat16)
    assert weight_only_layers(dynamic) == {}
    torchao.quantize_(dynamic, torchao.Int8DynamicActivationInt8WeightConfig())
    assert weight_only_layers(dynamic) == {}
    odd = nn.Linear(126, 128, device=device(), dtype=torch.bfloat16)
    torchao.quantize_(odd, torchao.Int8WeightOnlyConfig())
    assert weight_only_layers(odd) == {}
    with pytest.raises(AssertionError), replaced({layer.gate_proj: Replacement(Int8Linear, {})}):
        assert type(layer.gate_proj) is nn.Linear
    assert type(layer.gate_proj) is nn.Linear


@needs_kernels
def test_layers_that_keep_their_norms_and_sums():
    """Those in training, which may drop something, and those whose parts somebody listens to."""
    model, _ = models("int8")
    first, second = model.model.layers
    assert {first, second} <= weight_only_layers(model).keys()
    first.train()
    handle = second.input_layernorm.register_forward_hook(lambda *_: None)
    assert not {first, second} & weight_only_layers(model).keys()
    assert {first.mlp, first.self_attn.W_pack} <= weight_only_layers(model).keys()
    first.eval()
    handle.remove()
    assert {first, second} <= weight_only_layers(model).keys()


def models(kind: str, **settings: object) -> tuple[BaichuanForCausalLM, BaichuanForCausalLM]:
    """A model with weights of that kind, and one with their numbers in float32."""
    torch.manual_seed(0)
    width = 32 if kind == "int8" else 128
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 2, "vocab_size": 64}
    config = tiny_config(**sizes, num_attention_heads=4, normalize_lm_head=False, **settings)
    model = BaichuanForCausalLM(config).to(device(), torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) / 4)
    exact = copy.deepcopy(model).float()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and kind != "none":
            exact.get_submodule(name).weight.copy_(quantise(module, kind))
    return model, exact


@pytest.mark.gpu
def test_a_loaded_model(tmp_path):
    """Reads with such layers; is saved and loaded as any."""
    from transformers import AutoModelForCausalLM, TorchAoConfig

    plain, _ = models("none")
    plain.save_pretrained(tmp_path / "plain")
    settings = TorchAoConfig(torchao.Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
    options = {"dtype": "bfloat16", "device_map": "cuda"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings, **options)
    kinds = [type(module) for module in loaded.modules() if isinstance(module, nn.Linear)]
    assert kinds == [Int4Linear] * 2 * 5 + [nn.Linear]
    loaded.save_pretrained(tmp_path / "quantised")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", **options)
    ids = torch.randint(3, 64, (2, FEW_TOKENS), device="cuda")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, loaded(ids).logits)
        for module in again.modules():
            if type(module) is Int4Linear:
                module.__class__ = nn.Linear
        assert close(loaded(ids).logits, again(ids).logits.float(), roundings=8)


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "settings", "whole"),
    [
        ("int8", {}, True),
        ("int4-32", {}, True),
        ("int8", {"position_embedding_type": "alibi", "attention_bias": True}, True),
        ("int8", {"norm_position": "post", "num_key_value_heads": 2}, False),
    ],
    ids=str,
)
def test_a_compiled_step(kind, settings, whole):
    """One compilation for all layers, as without weights of fewer bits; the model is as it was behind it."""
    model, exact = models(kind, **settings)
    step, graphs = partwise_traced(model)
    assert [layer for layer in model.model.layers if layer in step.weight_only] == list(model.model.layers) * whole
    assert len(step.weight_only) >= 2 * 6 + 1
    ids = torch.randint(3, 64, (1, 3), device=device())
    cache = StaticCache(config=model.config, max_cache_len=8)
    with replaced(step.weight_only):  # torchao's int4 has no product on a CPU
        logits = [model(ids[:, :1], past_key_values=cache).logits]
    for position in (1, 2):
        token = {"input_ids": ids[:, position : position + 1], "position_ids": torch.full_like(ids[:, :1], position)}
        logits.append(step(**token, past_key_values=cache).logits)
    assert close(torch.cat(logits, dim=1), exact(ids).logits, roundings=8)
    assert len(graphs) == 2  # a layer, the head
    if whole:
        norms = [node for node in graphs[0].graph.nodes if re.search("rsqrt|rms_norm", str(node.target))]
        assert not norms
    assert {type(module) for module in model.modules()}.isdisjoint({Int8Linear, Int4Linear})
    assert not {"parts", "norm"} & set().union(*(vars(module) for module in model.modules()))


@pytest.mark.gpu
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_words_are_tinygemms(group):
    """The order of the tests above is torchao's own: its packing and its kernel."""
    torch.manual_seed(0)
    layer = nn.Linear(2048, 256, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    settings = torchao.Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d")
    torchao.quantize_(layer, settings)
    for tokens in (1, FEW_TOKENS, FEW_TOKENS + 1, 300):
        inputs = torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16)
        expected = layer(inputs)
        with replaced(weight_only_layers(layer)):
            assert type(layer) is Int4Linear
            assert close(layer(inputs), expected.float(), roundings=2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "int4-128"])
def test_generation(kind, monkeypatch):
    """Compiled and recorded; the logits are as torchao's are, up to rounding."""
    from baichuan_hf.model import decoding

    model, _ = models(kind)
    ids = torch.randint(3, 64, (1, 9), device="cuda")
    settings = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": "static", "output_logits": True}
    outputs = []
    for layers in (weight_only_layers, lambda model: {}):
        monkeypatch.setattr(decoding, "weight_only_layers", layers)
        torch._dynamo.reset()
        outputs.append(model.generate(ids, return_dict_in_generate=True, **settings))
    found, expected = outputs
    same = int((found.sequences == expected.sequences)[0, 9:].long().cumprod(0).sum())
    assert same >= 1
    for step in range(same):
        assert close(found.logits[step], expected.logits[step].float(), roundings=8)
