"""Triton's kernels against the plain operations that they take the place of, forward and backward."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model import feed_forward, positions
from baichuan_hf.model.cuda_graphs import recording
from baichuan_hf.model.feed_forward import GatedFeedForward
from baichuan_hf.model.lm_head import NormHead
from tests.helpers import tiny_config
from tests.helpers.kernels import device, needs_kernels, run_under_the_interpreter


DTYPES = {"float32": 1e-5, "bfloat16": 2e-2}


def test_kernels_under_the_interpreter():
    run_under_the_interpreter(__file__)


def both(monkeypatch, module, action):
    """Outputs and gradients with the kernel and without it."""
    results = []
    for used in (True, False):
        with monkeypatch.context() as patch:
            calls = []
            patch.setattr(module, "use_triton", lambda *tensors, used=used, calls=calls: calls.append(1) or used)
            results.append(action())
            assert calls
    return results


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "key_heads", "dim"), [(2, 7, 5, 3, 12), (1, 1, 9, 9, 16), (3, 5, 4, 2, 10)]
)
@pytest.mark.parametrize("shared", [False, True], ids=["positions per row", "positions of all rows"])
def test_rotation(monkeypatch, dtype, batch, tokens, heads, key_heads, dim, shared):
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, dtype), "device": device()}
    packed = torch.randn(batch, tokens, (heads + key_heads) * dim, **options)
    angles = torch.randn(1 if shared else batch, tokens, dim // 2, device=device())
    cos = angles.cos().repeat(1, 1, 2).to(options["dtype"])
    sin = torch.cat([angles.sin(), -angles.sin()], dim=-1).to(options["dtype"])
    weights = torch.randn(batch, tokens, heads + key_heads, dim, **options)

    def rotated():
        leaf = packed.clone().requires_grad_()
        parts = leaf.unflatten(-1, (-1, dim)).split([heads, key_heads], dim=2)
        whole = torch.cat([positions.rotate(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in parts], dim=2)
        (whole * weights).sum().backward()
        return whole, leaf.grad

    for fast, plain in zip(*both(monkeypatch, positions, rotated), strict=True):
        torch.testing.assert_close(fast, plain, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 24), (1, 1, 8), (3, 300, 16)], ids=str)
def test_gated_feed_forward(monkeypatch, dtype, shape):
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, dtype), "device": device()}
    layer = GatedFeedForward(shape[-1], 13, activation="silu", bias=False).to(**options)
    states = torch.randn(shape, **options)

    def transformed():
        leaf = states.clone().requires_grad_()
        layer.zero_grad()
        out = layer(leaf)
        out.square().sum().backward()
        return out, leaf.grad, layer.gate_proj.weight.grad, layer.up_proj.weight.grad

    for fast, plain in zip(*both(monkeypatch, feed_forward, transformed), strict=True):
        scale = plain.abs().max().item()
        torch.testing.assert_close(fast / scale, plain / scale, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@needs_kernels
def test_model_with_all_kernels(monkeypatch):
    """A language model's loss and gradients, with left padding."""
    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config()).to(device()).train()
    ids = torch.randint(3, model.config.vocab_size, (2, 9), device=device())
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    results = []
    for used in (True, False):
        with monkeypatch.context() as patch:
            if not used:
                for module in (feed_forward, positions):
                    patch.setattr(module, "use_triton", lambda *tensors: False)
            model.zero_grad()
            loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            loss.backward()
            results.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [7, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lengths_of_the_head_with_and_without_gradients(rows, dtype):
    """The former are taken of the whole weight, the latter on a CPU of a few rows at a time."""
    torch.manual_seed(rows)
    head = NormHead(96, rows, bias=False).to(dtype)
    expected = 1 / head.weight.double().norm(dim=-1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            norms = head.inverse_norms()
            assert not norms.requires_grad
            torch.testing.assert_close(norms.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(head.inverse_norms().double(), expected, rtol=1e-6, atol=0)


class TestNormsOfTheHead:
    """1 / |w| is kept between calls, and dropped when the weight changes."""

    def reference(self, head, states):
        return states @ F.normalize(head.weight.float(), dim=-1).T

    def head(self):
        torch.manual_seed(0)
        return NormHead(6, 11, bias=False)

    @torch.no_grad()
    def test_is_kept(self):
        head, states = self.head(), torch.randn(2, 6)
        head(states)
        assert head.inverse_norms() is head.inverse_norms()
        assert list(head.state_dict()) == ["weight"]

    @pytest.mark.gpu
    @torch.no_grad()
    def test_a_recording_keeps_none(self):
        """They are part of it."""
        head, states = self.head().to("cuda"), torch.randn(2, 6, device="cuda")
        head(states)
        for scale in (2.0, 3.0):
            head.weight.mul_(torch.linspace(1, scale, 11, device="cuda")[:, None])
            graph = torch.cuda.CUDAGraph()
            with recording(graph, states.device):
                recorded = head(states)
            expected = self.reference(head, states)
            torch.testing.assert_close(head(states), expected, rtol=1e-5, atol=1e-5)
            graph.replay()
            torch.testing.assert_close(recorded, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("change", ["in place", "optimiser", "object", "data", "dtype", "loaded"])
    def test_follows_the_weight(self, change):
        head, states = self.head(), torch.randn(2, 6)
        with torch.no_grad():
            before = head(states)
        scale = torch.linspace(1, 3, 11)[:, None]
        if change == "in place":
            with torch.no_grad():
                head.weight.mul_(scale).add_(0.1)
        elif change == "optimiser":
            head(states).square().sum().backward()
            torch.optim.SGD(head.parameters(), lr=0.5).step()
        elif change == "object":
            head.weight = nn.Parameter(head.weight.detach() * scale + 0.1)
        elif change == "data":
            head.weight.data = head.weight.data * scale + 0.1
        elif change == "dtype":
            head, states = head.double(), states.double()
        else:
            head.load_state_dict({"weight": head.weight.detach() * scale + 0.1})
        with torch.no_grad():
            after = head(states)
        torch.testing.assert_close(after.float(), self.reference(head, states.float()), rtol=1e-5, atol=1e-5)
        if change != "dtype":
            assert not torch.allclose(after, before, atol=1e-3)

    @pytest.mark.parametrize("inference", ["before the step", "between gradient and step", "before the gradient"])
    @pytest.mark.parametrize("skip_logits", [False, True])
    def test_follows_a_fused_optimiser(self, inference, skip_logits):
        """Which writes to the weight without a word, as Trainer's own does."""
        torch.manual_seed(0)
        model = BaichuanForCausalLM(tiny_config(normalize_lm_head=True, z_loss_weight=0.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
        ids = torch.randint(3, model.config.vocab_size, (2, 7))

        def infer():
            with torch.no_grad():
                return model(ids).logits

        before = infer()
        for _ in range(2):
            loss = model(ids, labels=ids, skip_logits=skip_logits).loss
            if inference == "before the gradient":
                infer()
            loss.backward()
            if inference == "between gradient and step":
                infer()
            optimizer.step()
            optimizer.zero_grad()
        after = infer()
        assert not torch.allclose(after, before, atol=0.1)
        torch.testing.assert_close(after, copy.deepcopy(model)(ids).logits.detach())

    def test_copies_and_pickles_without_them(self, tmp_path):
        head, states = self.head(), torch.randn(2, 6)
        with torch.no_grad():
            head(states)
            copied = copy.deepcopy(head)
            copied.weight.mul_(torch.linspace(1, 3, 11)[:, None]).add_(0.1)
            torch.testing.assert_close(copied(states), self.reference(copied, states), rtol=1e-5, atol=1e-5)
        assert len(pickle.dumps(head)) < len(pickle.dumps(nn.Linear(6, 11))) + 500

    def test_a_frozen_head_trains_what_is_before_it_after_inference_mode(self):
        head, states = self.head().requires_grad_(False), torch.randn(2, 6)
        with torch.inference_mode():
            head(states)
        states.requires_grad_()
        head(states).square().sum().backward()
        expected = states.detach().clone().requires_grad_()
        self.reference(head, expected).square().sum().backward()
        torch.testing.assert_close(states.grad, expected.grad, rtol=1e-4, atol=1e-5)

    def test_training_has_gradients_after_inference(self):
        head, states = self.head(), torch.randn(2, 6)
        with torch.no_grad():
            head(states)
        head(states).square().sum().backward()
        expected = head.weight.detach().clone().requires_grad_()
        (states @ F.normalize(expected, dim=-1).T).square().sum().backward()
        torch.testing.assert_close(head.weight.grad, expected.grad, rtol=1e-4, atol=1e-5)
