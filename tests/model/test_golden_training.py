"""Losses and gradients against the numbers of the original code."""

import pytest
import torch

import baichuan_hf  # noqa: F401
from tests.helpers.golden import GOLDEN_FAMILIES, NORMHEAD_FAMILIES, TOLERANCE, load_golden, logits_difference


# The README: a float64 implementation is within 3e-6 of the losses, and 2e-6 (relative) of the gradient norms.
LOSS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4

SETTINGS = [
    pytest.param(family, setting, weight, id=f"{family}-{setting}")
    for family in GOLDEN_FAMILIES
    for setting, weight in (
        {"z_loss_weight=0": 0.0, "z_loss_weight=2e-4": 2e-4} if family in NORMHEAD_FAMILIES else {"plain": 0.0}
    ).items()
]


@pytest.fixture(params=["eager", "sdpa"])
def attention(request):
    return request.param


@pytest.fixture(params=GOLDEN_FAMILIES)
def golden(request):
    return load_golden(request.param)


def relative(actual, expected):
    return abs(actual - expected) / max(abs(expected), 1e-6)


@pytest.mark.parametrize("family, setting, z_loss_weight", SETTINGS)
@pytest.mark.parametrize(
    "checkpointing",
    [None, {"use_reentrant": False}, {"use_reentrant": True}],
    ids=["plain", "checkpoint-nonreentrant", "checkpoint-reentrant"],
)
def test_gradients(family, setting, z_loss_weight, attention, checkpointing):
    golden = load_golden(family)
    expected, facts = golden.tensors, golden.facts["train"][setting]
    model = golden.load(attn_implementation=attention, z_loss_weight=z_loss_weight).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    output = model(expected["train.input_ids"], labels=expected["train.labels"])
    output.loss.backward()

    assert logits_difference(output.logits, expected["train.logits"]) < TOLERANCE
    assert relative(output.loss.item(), facts["loss"]) < LOSS_TOLERANCE
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(facts["grad_norm"])
    for name, norm in facts["grad_norm"].items():
        assert relative(gradients[name].norm().item(), norm) < GRADIENT_TOLERANCE, name
    suffix = ".z" if z_loss_weight else ""
    rows = gradients["lm_head.weight"].norm(dim=1)
    torch.testing.assert_close(
        rows, expected[f"train.grad_row_norm.lm_head.weight{suffix}"], rtol=GRADIENT_TOLERANCE, atol=1e-6
    )
    # Stored for z_loss_weight=0 only.
    if not z_loss_weight:
        for name in [name for name in expected if name.startswith("train.grad.")]:
            stored, ours = expected[name], gradients["model." + name.removeprefix("train.grad.")]
            torch.testing.assert_close(
                ours, stored, rtol=GRADIENT_TOLERANCE, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_loss_in_eval_mode(golden, attention):
    expected = golden.tensors
    model = golden.load(attn_implementation=attention).eval()
    with torch.no_grad():
        loss = model(expected["train.input_ids"], labels=expected["train.labels"]).loss
    assert relative(loss.item(), golden.facts["eval_loss_same_labels"]) < LOSS_TOLERANCE


@pytest.mark.parametrize("family", NORMHEAD_FAMILIES)
def test_z_loss_in_eval_mode(family):
    """The original adds it whenever labels are given; the logits of train and eval mode are the same."""
    golden = load_golden(family)
    model = golden.load(z_loss_weight=2e-4).eval()
    with torch.no_grad():
        loss = model(golden.tensors["train.input_ids"], labels=golden.tensors["train.labels"]).loss
    assert relative(loss.item(), golden.facts["train"]["z_loss_weight=2e-4"]["loss"]) < LOSS_TOLERANCE


def test_loss_with_right_padding(golden, attention):
    """The labels of the padded positions are ignored, so the mask changes nothing."""
    expected = golden.tensors
    mask = torch.ones_like(expected["train.input_ids"])
    mask[1, -4:] = 0
    model = golden.load(attn_implementation=attention).train()
    loss = model(expected["train.input_ids"], attention_mask=mask, labels=expected["train.labels"]).loss
    assert relative(loss.item(), golden.facts["train_right_pad_loss"]) < LOSS_TOLERANCE


def test_the_padding_row_of_the_embeddings_gets_no_gradient(golden):
    """Embeddings have padding_idx 0; the row itself is used as it is."""
    ids = golden.tensors["train.input_ids"].clone()
    ids[:, ::3] = 0
    model = golden.load().train()
    assert model.model.embed_tokens.weight[0].abs().sum() > 0
    model(ids, labels=ids).loss.backward()
    gradient = model.model.embed_tokens.weight.grad
    assert gradient[0].abs().sum() == 0
    assert gradient[ids[0, 1]].abs().sum() > 0
