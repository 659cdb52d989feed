"""All that is fast on a GPU: the original code's numbers, closeness in bfloat16, and texts of 32k tokens."""

from contextlib import contextmanager

import pytest
import torch
from transformers import CompileConfig

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model import attention, feed_forward, normalization, positions
from tests.helpers import tiny_config
from tests.helpers.golden import GOLDEN_FAMILIES, TOLERANCE, load_golden, logits_difference


pytestmark = pytest.mark.gpu

LONG = 32_760
WAYS = {
    "dynamic": {},
    "recorded": {"cache_implementation": "static", "compile_config": CompileConfig(backend="cudagraphs")},
    "compiled": {"cache_implementation": "static"},
}


@pytest.fixture(params=["rope", "alibi"])
def positions_kind(request):
    return request.param


def build(kind, seed, *, layers, head_dim=64, **settings):
    """Heads as wide as the kernels take, and logits that stand apart."""
    torch.manual_seed(seed)
    config = tiny_config(
        num_hidden_layers=layers,
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        intermediate_size=688,
        vocab_size=4096,
        position_embedding_type=kind,
        initializer_range=0.06,
        eos_token_id=None,
        **settings,
    )
    return BaichuanForCausalLM(config).eval().to("cuda")


@contextmanager
def no_kernels():
    """In which no kernel is chosen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalization.RMSNorm, "_has_kernel", lambda self, states: False)
        patch.setattr(attention, "suits_cudnn", lambda *states: False)
        for module in (feed_forward, positions):
            patch.setattr(module, "use_triton", lambda *tensors: False)
        yield


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("length", [300, 4096])
def test_bfloat16_is_as_close_to_float32_as_without_kernels(positions_kind, seed, length):
    model = build(positions_kind, seed, layers=8)
    text = torch.randint(3, 4096, (1, length), device="cuda")
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        fast = model(text).logits.double()
        with no_kernels():
            slow = model(text).logits.double()
            # The same weights, so that only what is computed with them is rounded.
            exact = model.double()(text).logits
    errors = [(logits - exact).abs().flatten() for logits in (fast, slow)]
    means = [error.mean().item() for error in errors]
    tails = [error.kthvalue(int(0.999 * error.numel())).values.item() for error in errors]
    assert means[0] < 1.05 * means[1]
    assert tails[0] < 1.05 * tails[1]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_behind_32k_tokens(positions_kind, way):
    model = build(positions_kind, 0, layers=2, max_position_embeddings=LONG + 8)
    text = torch.randint(3, 4096, (1, LONG), device="cuda")
    options = {"attention_mask": torch.ones_like(text), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    fast = model.generate(text, **options, **WAYS[way])
    with no_kernels():
        slow = model.generate(text, **options)
    assert fast.tolist() == slow.tolist()


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_numbers_of_the_original_code(family):
    golden = load_golden(family)
    stored = golden.tensors
    model = golden.load().to("cuda")
    with torch.no_grad():
        logits = model(stored["input_ids"].to("cuda")).logits.cpu()
        rounded = golden.load(dtype=torch.bfloat16).to("cuda")(stored["bf16.input_ids"].to("cuda")).logits.cpu()
    assert logits_difference(logits, stored["logits"]) < TOLERANCE
    difference = (rounded[..., : stored["bf16.logits"].shape[-1]].float() - stored["bf16.logits"].float()).abs().mean()
    assert difference < 1.5 * golden.facts["bf16.mean_abs_diff_to_fp32"]
    ids, mask = (stored[f"generate_left_pad.{name}"].to("cuda") for name in ("input_ids", "attention_mask"))
    expected = stored["generate_left_pad.tokens"]
    for way in WAYS.values():
        options = {"max_new_tokens": expected.shape[1], "do_sample": False, "repetition_penalty": 1.0, **way}
        tokens = model.generate(ids, attention_mask=mask, **options)
        assert torch.equal(tokens[:, ids.shape[1] :].cpu(), expected)
