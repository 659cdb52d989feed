"""Generated tokens against those of the original code."""

import functools

import pytest
import torch

import baichuan_hf  # noqa: F401
from tests.helpers.golden import GOLDEN_FAMILIES, load_golden


# The published generation_config.json samples with a repetition penalty.
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}


@functools.cache
def load_model(family, attention):
    return load_golden(family).load(attn_implementation=attention).eval()


@pytest.fixture(params=GOLDEN_FAMILIES)
def golden(request):
    return load_golden(request.param)


@pytest.fixture(params=["eager", "sdpa"])
def model(request, golden):
    return load_model(golden.name, request.param)


def continuation(model, prompt, **kwargs):
    tokens = model.generate(prompt[None], **(GREEDY | kwargs))
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_greedy(model, golden, k, use_cache):
    expected = golden.tensors[f"generate.tokens.{k}"].tolist()
    prompt = golden.tensors[f"generate.prompt.{k}"]
    assert continuation(model, prompt, max_new_tokens=len(expected), use_cache=use_cache) == expected


def test_greedy_with_left_padding(model, golden):
    ids = golden.tensors["generate_left_pad.input_ids"]
    expected = golden.tensors["generate_left_pad.tokens"]
    mask = golden.tensors["generate_left_pad.attention_mask"]
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=expected.shape[1], **GREEDY)
    assert torch.equal(tokens[:, ids.shape[1] :], expected)


def test_repetition_penalty(model, golden):
    expected = golden.tensors["generate_repetition_penalty.tokens"].tolist()
    penalty = golden.facts["generate_repetition_penalty.penalty"]
    prompt = golden.tensors["generate_repetition_penalty.prompt"]
    assert continuation(model, prompt, max_new_tokens=len(expected), repetition_penalty=penalty) == expected


def sequence_score(model, prompt, tokens):
    """Sum of the log probabilities of `tokens` after `prompt`."""
    ids = torch.cat([prompt, torch.tensor(tokens)])[None]
    with torch.no_grad():
        log_probabilities = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probabilities.gather(1, torch.tensor(tokens)[:, None]).sum().item()


def test_beams(model, golden):
    """The README calls the stored beams informative (no margin was checked): another result must score no worse."""
    expected = golden.tensors["generate_beam3.tokens"].tolist()
    prompt = golden.tensors["generate_beam3.prompt"]
    tokens = continuation(model, prompt, max_new_tokens=len(expected), num_beams=3)
    assert (
        tokens == expected or sequence_score(model, prompt, tokens) >= sequence_score(model, prompt, expected) - 1e-3
    )
