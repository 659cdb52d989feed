"""What `generate` spares a GPU: plans for lengths that never come again, and to wait for the host between tokens."""

import functools
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache, TextStreamer
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation import utils as generation

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model import modeling_baichuan
from baichuan_hf.model.cudnn_attention import MIN_TOKENS, sdpa_kernels
from tests.helpers import tiny_config


CUDNN = torch.backends.cuda.cudnn_sdp_enabled
needs_deferred_checks = pytest.mark.skipif(
    not hasattr(generation, "DeferredStopCheck"), reason="transformers before 5.17 checks after every token"
)


def build(kind="rope", **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "vocab_size": 512, "initializer_range": 0.2}
    config = tiny_config(position_embedding_type=kind, eos_token_id=None, **sizes, **settings)
    return BaichuanForCausalLM(config).eval()


def on_a_gpu(tokens):
    """Queries that say so, (1, 4, tokens, 64)."""
    with FakeTensorMode():
        return torch.empty(1, 4, tokens, 64, device="cuda")


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [(1, None), (1, "dynamic"), (7, None), (7, "dynamic"), (7, "static"), (MIN_TOKENS - 1, "static")],
)
def test_what_cudnn_would_plan_for_in_vain(tokens, kind):
    """Whatever its queries or keys are: their number is another one the next time."""
    settings = {"config": tiny_config(), "max_cache_len": 4096}
    grown = {"dynamic": DynamicCache, "static": functools.partial(StaticCache, **settings), None: lambda: None}[kind]()
    with sdpa_kernels(on_a_gpu(tokens), grown, training=False):
        assert not CUDNN()
        with sdpa_kernels(on_a_gpu(tokens), grown, training=False):
            assert not CUDNN()
        assert not CUDNN()
    assert CUDNN()
    with pytest.raises(KeyError), sdpa_kernels(on_a_gpu(tokens), grown, training=False):
        raise KeyError
    assert CUDNN()


def test_what_is_torchs_to_choose():
    fixed, grown = StaticCache(config=tiny_config(), max_cache_len=9), DynamicCache()
    for query, cache, training in (
        (on_a_gpu(MIN_TOKENS), None, False),
        (on_a_gpu(1), fixed, False),
        (on_a_gpu(7), None, True),
        (on_a_gpu(7), grown, True),
        (torch.empty(1, 4, 1, 64), None, False),
    ):
        with sdpa_kernels(query, cache, training=training):
            assert CUDNN()
    with torch.no_grad(), sdpa_kernels(on_a_gpu(1), grown, training=True):
        assert not CUDNN()  # texts that are written between two steps of training
    with torch.no_grad(), sdpa_kernels(on_a_gpu(7), None, training=True):
        assert CUDNN()  # as when the layer is computed again for its gradients
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with sdpa_kernels(on_a_gpu(1), None, training=False):
            assert not CUDNN()
        assert not CUDNN()  # as the user wants it
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


class Operations(TorchDispatchMode):
    """The names of what is called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["rope", "alibi"])
@pytest.mark.parametrize("rows", [1, 2])
def test_generation_needs_no_plan(kind, rows):
    """One row, and two of which one is padded."""
    model = build(kind).to("cuda", torch.bfloat16)
    ids = torch.randint(3, 512, (rows, 33), device="cuda")
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, :5] = 0
    with Operations() as found:
        model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert any("attention" in name for name in found.names)
    assert not any("cudnn_attention" in name for name in found.names)


class Asks(StoppingCriteria):
    """Whether transformers would let the host run ahead on a GPU."""

    def __init__(self):
        self.found = []

    def __call__(self, input_ids, scores, **kwargs):
        check = generation.DeferredStopCheck.is_supported
        self.found.append(
            (check(torch.device("cuda"), None, False, False), check(torch.device("cuda"), None, True, False))
        )
        return torch.zeros(len(input_ids), dtype=torch.bool)


def asked(model, **options):
    asks = Asks()
    ids = torch.randint(3, 100, (2, 5))
    model.generate(ids, max_new_tokens=3, stopping_criteria=StoppingCriteriaList([asks]), **options)
    return set(asks.found)


@needs_deferred_checks
def test_only_these_models_let_the_host_run_ahead():
    model = build()
    for options in ({"do_sample": False}, {"do_sample": True}):
        assert asked(model, **options) == {(True, False)}  # nothing of the token too many is handed out
    assert asked(model, num_beams=2, do_sample=False) == {(False, False)}
    llama = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    assert asked(AutoModelForCausalLM.from_config(llama), do_sample=False) == {(False, False)}
    assert not generation.DeferredStopCheck.is_supported(torch.device("cuda"), None, False, False)


class Written(TextStreamer):
    """The tokens that a streamer gets."""

    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


@pytest.mark.gpu
@needs_deferred_checks
@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}], ids=["dynamic", "compiled"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_host_ahead_changes_nothing(monkeypatch, way, rows):
    """Texts that end early and at the limit, what a streamer gets, and what is handed out with its cache."""
    model = build().to("cuda")
    ids = torch.randint(3, 512, (rows, 6), device="cuda")
    whole = model.generate(ids, max_new_tokens=12, do_sample=False)[:, 6:]

    def written(**options):
        streamer = Written() if rows == 1 else None
        tokens = model.generate(ids, max_new_tokens=12, pad_token_id=0, streamer=streamer, **options, **way)
        return tokens.tolist(), streamer and streamer.tokens

    ends = [None, whole[0, 4].item(), whole[:, 0].tolist(), whole[:, 7].tolist(), whole[-1, -1].item()]
    calls = [{"do_sample": False, "eos_token_id": end} for end in ends]
    calls.append({"do_sample": True, "eos_token_id": ends[1]})
    ahead, waiting = [], []
    for results, context in ((ahead, modeling_baichuan.host_ahead), (waiting, nullcontext)):
        monkeypatch.setattr(modeling_baichuan, "host_ahead", context)
        for options in calls:
            torch.manual_seed(1)
            results.append(written(**options))
    assert ahead == waiting
    assert len({len(tokens[0]) for tokens, _ in ahead}) > 2

    monkeypatch.undo()
    outputs = model.generate(
        ids, max_new_tokens=12, do_sample=False, eos_token_id=ends[1], return_dict_in_generate=True, **way
    )
    assert outputs.past_key_values.get_seq_length() == outputs.sequences.shape[1] - 1
