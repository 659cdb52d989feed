"""The loss in chunks, without logits, against the loss on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from baichuan_hf import BaichuanForCausalLM, BaichuanForMaskedLM
from baichuan_hf.model import loss as loss_module
from baichuan_hf.model.lm_head import NormHead
from tests.helpers import tiny_config


HEADS = {
    "linear": {},
    "normhead": {"normalize_lm_head": True},
    "normhead-z": {"normalize_lm_head": True, "z_loss_weight": 0.1},
    "tied": {"tie_word_embeddings": True},
    "experts": {"num_local_experts": 4},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Seven tokens at a time: the last chunk of 2 x 13 has fewer."""
    monkeypatch.setitem(loss_module.chunked_loss.__kwdefaults__, "max_logits", 7 * 128)


def make(cls=BaichuanForCausalLM, seed=0, **settings):
    torch.manual_seed(seed)
    return cls(tiny_config(initializer_range=0.3, **settings)).train()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 128, (2, 13), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) < 0.3) | (mask == 0), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    "options", [{}, {"num_items_in_batch": torch.tensor(31)}, {"num_items_in_batch": 31}], ids=str
)
@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_whole_logits(settings, options, seed):
    model, inputs = make(seed=seed, **settings), batch(seed) | options
    plain, expected = loss_and_gradients(model, **inputs)
    chunked, found = loss_and_gradients(model, **inputs, skip_logits=True)
    assert plain.logits.shape == (2, 13, 128)
    assert chunked.logits is None
    torch.testing.assert_close(chunked.loss, plain.loss)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_masked_language_model():
    model, inputs = make(BaichuanForMaskedLM, is_causal=False, z_loss_weight=0.1), batch()
    plain, expected = loss_and_gradients(model, **inputs)
    chunked, found = loss_and_gradients(model, **inputs, skip_logits=True)
    torch.testing.assert_close(chunked.loss, plain.loss)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_labels_that_are_shifted_already(z_loss_weight):
    model, inputs = make(z_loss_weight=z_loss_weight), batch()
    labels = inputs.pop("labels")
    inputs["shift_labels"] = F.pad(labels[:, 1:], (0, 1), value=-100)
    plain, chunked = model(**inputs), model(**inputs, skip_logits=True)
    expected = F.cross_entropy(plain.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected = expected + z_loss_weight * plain.logits.amax(-1).square().mean()
    torch.testing.assert_close(plain.loss, expected)
    torch.testing.assert_close(chunked.loss, expected)


def test_label_smoothing():
    model, inputs = make(), batch()
    logits = model(**inputs).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(model(**inputs, skip_logits=True, label_smoothing=0.1).loss, expected)


def test_adapters_on_the_head():
    model = get_peft_model(make(), LoraConfig(r=4, target_modules=["W_pack", "lm_head"], init_lora_weights=False))
    plain, expected = loss_and_gradients(model, **batch())
    chunked, found = loss_and_gradients(model, **batch(), skip_logits=True)
    assert any("lm_head.lora" in name for name in expected)
    torch.testing.assert_close(chunked.loss, plain.loss)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_as_exact_as_on_whole_logits():
    model, inputs = make(normalize_lm_head=True), batch()
    exact = model(**inputs).loss
    model = model.bfloat16()
    plain, chunked = (model(**inputs, skip_logits=skip).loss.float() for skip in (False, True))
    assert abs(chunked - exact) <= abs(plain - exact) + 1e-3


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_more_logits_than_a_chunk_exist(mode):
    """The head never sees more tokens than fit, forward or backward."""
    model, seen = make(), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    model.skip_logits = True
    getattr(model, mode)()
    model(**batch()).loss.backward()
    assert max(seen) == 7
    assert sum(seen) == 2 * 24  # every position but the last of a row, forward and again backward
    assert model(batch()["input_ids"]).logits.shape == (2, 13, 128)  # without labels there is nothing else to return


@pytest.mark.parametrize("labelled", [0, 6, 24])
def test_positions_without_a_label_cost_nothing(labelled):
    head, states = torch.nn.Linear(16, 128, bias=False), torch.randn(1, 24, 16, requires_grad=True)
    labels = torch.full((1, 24), -100)
    labels[:, :labelled] = 5
    options = {"vocab_size": 128, "shifted": False, "num_items_in_batch": 3}
    with FlopCounterMode(display=False) as counter:
        loss_module.chunked_loss(head, states, labels, **options).backward()
    assert counter.get_total_flops() == 3 * 2 * labelled * 16 * 128  # logits, and the gradients of states and weight
    assert (states.grad[:, labelled:] == 0).all()


@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.nn.Linear, NormHead])
def test_a_kernel_takes_the_place_of_the_chunks(kind, z_loss_weight):
    calls = []

    def kernel(states, weight, bias, targets, label_smoothing):
        calls.append(states.shape)
        logits = F.linear(states, weight, bias)
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)

    head, states, labels = kind(16, 128), torch.randn(2, 13, 16), batch()["labels"]
    options = {"vocab_size": 128, "label_smoothing": 0.1, "z_loss_weight": z_loss_weight}
    results = []
    for fused in (None, kernel):
        head.zero_grad()
        loss = loss_module.chunked_loss(head, states, labels, fused=fused, **options)
        loss.backward()
        results.append([loss.detach(), head.weight.grad, head.bias.grad])
    torch.testing.assert_close(results[1], results[0])
    assert calls == ([] if z_loss_weight else [(24, 16)])


def test_a_label_outside_the_vocabulary():
    inputs = batch()
    inputs["labels"][0, 3] = 128
    with pytest.raises(ValueError, match="labels holds values from -100 to 128"):
        make()(**inputs, skip_logits=True)


def test_compiles_without_a_break():
    model, inputs = make().eval(), batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs, skip_logits=True).loss, model(**inputs).loss)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"num_items_in_batch": 31}], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
def test_one_pass_gives_the_gradients_of_two(settings, bias, options):
    """A head with a hook runs again in the backward pass."""
    model = make(**settings, lm_head_bias=bias)
    once, found = loss_and_gradients(model, **batch(), **options, skip_logits=True)
    model.lm_head.register_forward_hook(lambda *_: None)
    twice, expected = loss_and_gradients(model, **batch(), **options, skip_logits=True)
    torch.testing.assert_close(once.loss, twice.loss)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trained", ["head", "body"])
def test_a_part_of_the_weights_is_trained(trained):
    model, inputs = make(normalize_lm_head=True), batch()
    model.requires_grad_(False)
    (model.lm_head if trained == "head" else model.model).requires_grad_(True)
    _, expected = loss_and_gradients(model, **inputs)
    _, found = loss_and_gradients(model, **inputs, skip_logits=True)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_under_autocast(dtype):
    """As near to those of float32 as the plain loss's, also where a mean's would vanish in float16."""
    model, inputs = make(normalize_lm_head=True), {**batch(), "num_items_in_batch": 2**20}
    _, exact = loss_and_gradients(model, **inputs)

    def error(**options):
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = model(**inputs, **options).loss
        (loss * 2**16).backward()
        found = {name: weight.grad / 2**16 for name, weight in model.named_parameters()}
        assert all(gradient.isfinite().all() for gradient in found.values())
        return sum((found[name] - exact[name]).norm() / exact[name].norm() for name in exact) / len(exact)

    assert error(skip_logits=True) < 1.5 * error() < 0.2


def test_the_gradients_are_given_once():
    loss = make()(**batch(), skip_logits=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="skip_logits=False"):
        loss.backward()
