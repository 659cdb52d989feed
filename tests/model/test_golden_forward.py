"""Forward passes against the numbers of the original code (tests/golden, or the full set in ../shared/golden)."""

import functools
import shutil

import pytest
import torch

import baichuan_hf  # noqa: F401  (registers the classes)
from tests.helpers.golden import (
    ALIBI_FAMILIES,
    GOLDEN_FAMILIES,
    ROPE_FAMILIES,
    TOLERANCE,
    load_golden,
    logits_difference,
)


ATTENTIONS = ["eager", "sdpa"]


@pytest.fixture(params=GOLDEN_FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=ATTENTIONS)
def attention(request):
    return request.param


@functools.cache
def load_model(family, attention):
    """Shared by the tests of a file: none of them changes it."""
    return load_golden(family).load(attn_implementation=attention).eval()


@pytest.fixture
def model(family, attention):
    return load_model(family, attention)


@pytest.fixture
def golden(family):
    return load_golden(family)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_logits(model, golden):
    expected = golden.tensors
    assert logits_difference(model(expected["input_ids"]).logits, expected["logits"]) < TOLERANCE


def test_a_second_forward_gives_the_same_logits(model, golden):
    """The original rewrites the head's weight in its first evaluation: ours must not need to."""
    expected = golden.tensors
    first = model(expected["input_ids"]).logits
    assert torch.equal(model(expected["input_ids"]).logits, first)


def test_hidden_states(model, golden):
    expected = golden.tensors
    hidden_states = model(expected["input_ids"], output_hidden_states=True).hidden_states
    assert len(hidden_states) == model.config.num_hidden_layers + 1
    for i, hidden in enumerate(hidden_states):
        assert logits_difference(hidden, expected[f"hidden_states.{i}"]) < TOLERANCE, f"hidden_states[{i}]"


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(model, golden, side):
    expected = {name: golden.tensors[f"{side}_pad.{name}"] for name in ("input_ids", "attention_mask", "logits")}
    mask = expected["attention_mask"]
    logits = model(expected["input_ids"], attention_mask=mask).logits
    assert logits_difference(logits, expected["logits"], mask) < TOLERANCE
    assert logits.isfinite().all()


@pytest.mark.parametrize("family", ROPE_FAMILIES, indirect=True)
def test_left_padding_with_position_ids(model, golden):
    expected = golden.tensors
    mask = expected["left_pad.attention_mask"]
    logits = model(
        expected["left_pad.input_ids"], attention_mask=mask, position_ids=expected["left_pad.position_ids"]
    ).logits
    assert logits_difference(logits, expected["left_pad.logits_with_position_ids"], mask) < TOLERANCE


def test_cache_steps(model, golden):
    expected = golden.tensors
    ids = expected["cache.input_ids"]
    prefill = expected["cache.prefill_logits"].shape[1]
    output = model(ids[:, :prefill], use_cache=True)
    assert logits_difference(output.logits, expected["cache.prefill_logits"]) < TOLERANCE
    for step, column in enumerate(range(prefill, ids.shape[1])):
        output = model(ids[:, column : column + 1], past_key_values=output.past_key_values, use_cache=True)
        assert logits_difference(output.logits[:, 0], expected["cache.step_logits"][:, step]) < TOLERANCE, column
    assert output.past_key_values.get_seq_length() == ids.shape[1]


def test_cache_steps_with_left_padding(model, golden):
    expected = golden.tensors
    ids, mask = expected["cache_left_pad.input_ids"], expected["cache_left_pad.attention_mask"]
    prefill = golden.facts["cache_left_pad.prefill_length"]
    output = model(ids[:, :prefill], attention_mask=mask[:, :prefill], use_cache=True)
    for step, column in enumerate(range(prefill, ids.shape[1])):
        output = model(
            ids[:, column : column + 1],
            attention_mask=mask[:, : column + 1],
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        assert logits_difference(output.logits[:, 0], expected["cache_left_pad.step_logits"][:, step]) < TOLERANCE


def test_several_tokens_on_a_cache(model, golden):
    """The ALiBi originals raise here (`chunked_prefill.error`); the result can only be that of one pass."""
    expected = golden.tensors
    ids = expected["cache.input_ids"]
    prefill = expected["cache.prefill_logits"].shape[1]
    past_key_values = model(ids[:, :prefill], use_cache=True).past_key_values
    logits = model(ids[:, prefill:], past_key_values=past_key_values, use_cache=True).logits
    assert logits_difference(logits, expected["cache.step_logits"]) < TOLERANCE


def test_longer_than_the_context(model, golden):
    expected = golden.tensors
    assert expected["long.input_ids"].shape[1] > golden.facts["sizes"]["ctx"]
    logits = model(expected["long.input_ids"]).logits[0, expected["long.positions"]]
    assert logits_difference(logits, expected["long.logits"]) < TOLERANCE


def test_cache_across_the_end_of_the_context(model, golden):
    expected = golden.tensors
    ids, first = expected["long.input_ids"], golden.facts["long_cache.first_step_position"]
    steps = expected["long_cache.step_logits"].shape[1]
    output = model(ids[:, :first], use_cache=True)
    for step in range(steps):
        output = model(ids[:, first + step : first + step + 1], past_key_values=output.past_key_values, use_cache=True)
        assert logits_difference(output.logits[:, 0], expected["long_cache.step_logits"][:, step]) < TOLERANCE


@pytest.mark.parametrize("family", ALIBI_FAMILIES, indirect=True)
def test_packed_rows_by_segment_numbers(model, golden):
    expected = golden.tensors
    mask = expected["packed.attention_mask"]
    assert mask.max() > 1
    logits = model(expected["packed.input_ids"], attention_mask=mask).logits
    assert logits_difference(logits, expected["packed.logits"], mask > 0) < TOLERANCE


def test_packed_rows_by_position_ids(model, golden):
    """Sequences one after another, with positions that restart, equal each sequence alone."""
    ids, lengths = golden.tensors["input_ids"], [20, 13, 6]
    packed = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    logits = model(packed, position_ids=positions, use_cache=False).logits[0].split(lengths)
    for row, length, segment in zip(golden.tensors["logits"], lengths, logits, strict=True):
        assert logits_difference(segment, row[:length]) < TOLERANCE


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("use_cache", [None, False], ids=["default", "no-cache"])
def test_packed_rows_with_padding(model, golden, pad, use_cache):
    """Segment numbers in the mask, 0 for padding on either side: each segment equals the row alone."""
    ids, lengths = golden.tensors["input_ids"], [20, 13, 6]
    packed = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
    segments = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths, start=1)])
    sides = (4, 0) if pad == "left" else (0, 4)
    packed, segments = (torch.nn.functional.pad(x, sides)[None] for x in (packed, segments))
    logits = model(packed, attention_mask=segments, use_cache=use_cache).logits
    assert logits.isfinite().all()
    for number, (row, length) in enumerate(zip(golden.tensors["logits"], lengths, strict=True), start=1):
        assert logits_difference(logits[segments == number], row[:length]) < TOLERANCE


def bfloat16_difference(actual, expected):
    return (actual[..., : expected.shape[-1]].float() - expected.float()).abs().mean().item()


def test_bfloat16(golden, attention):
    """As close to the exact logits as the original is, and about as close to the original as two such runs can be.

    Two roundings that are independent differ by sqrt(2) of what each differs from the exact value.
    """
    expected, figure = golden.tensors, golden.facts["bf16.mean_abs_diff_to_fp32"]
    model = golden.load(attn_implementation=attention, dtype=torch.bfloat16)
    logits = model(expected["bf16.input_ids"]).logits
    assert logits.dtype == torch.bfloat16
    assert bfloat16_difference(logits, expected["bf16.logits"]) < 1.5 * figure
    exact = load_model(golden.name, attention)(expected["bf16.input_ids"]).logits
    assert bfloat16_difference(logits, exact) < 1.2 * figure


def test_bfloat16_over_the_whole_context(golden, attention):
    """The original's ALiBi bias loses digits with the distance from the first column; ours may only be better."""
    expected, figure = golden.tensors, golden.facts["bf16_long.mean_abs_diff_to_fp32"]
    ids = expected["long.input_ids"][:, : golden.facts["sizes"]["ctx"]]
    model = golden.load(attn_implementation=attention, dtype=torch.bfloat16)
    logits = model(ids).logits[0, expected["bf16_long.positions"]]
    assert bfloat16_difference(logits, expected["bf16_long.logits"]) < 1.5 * figure
    exact = load_model(golden.name, attention)(ids).logits[0, expected["bf16_long.positions"]]
    assert bfloat16_difference(logits, exact) < 1.2 * figure


def test_bfloat16_steps_on_a_long_cache(golden, attention):
    """As exact as one pass: a bias that grew with the column, not with the distance, would be rounded away."""
    ids = golden.tensors["long.input_ids"][:, : golden.facts["sizes"]["ctx"]]
    prefill = ids.shape[1] - 16
    model = golden.load(attn_implementation=attention, dtype=torch.bfloat16)
    cache = model(ids[:, :prefill], use_cache=True).past_key_values
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(prefill, ids.shape[1])]
    exact = load_model(golden.name, attention)(ids).logits[:, prefill:]
    one_pass = bfloat16_difference(model(ids).logits[:, prefill:], exact)
    assert bfloat16_difference(torch.cat(steps, dim=1), exact) < 1.3 * one_pass


@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention on a CPU is compiled with g++")
@pytest.mark.parametrize(
    "family, case",
    [
        ("baichuan-7b", "plain"),
        ("baichuan2-7b", "plain"),
        ("baichuan-13b", "left_pad"),
        ("baichuan2-13b", "packed"),
        pytest.param("baichuan-7b", "left_pad", marks=pytest.mark.slow),
        pytest.param("baichuan2-7b", "left_pad", marks=pytest.mark.slow),
        pytest.param("baichuan-13b", "plain", marks=pytest.mark.slow),
        pytest.param("baichuan-13b", "packed", marks=pytest.mark.slow),
        pytest.param("baichuan2-13b", "plain", marks=pytest.mark.slow),
        pytest.param("baichuan2-13b", "left_pad", marks=pytest.mark.slow),
    ],
)
def test_flex_attention(family, case):
    """On a CPU flex has a forward without gradients, for fixed shapes: with a bias and keys of variable length torch
    2.13 writes C++ that does not compile."""
    golden = load_golden(family)
    expected, prefix = golden.tensors, "" if case == "plain" else f"{case}."
    mask = expected.get(f"{prefix}attention_mask")
    model = load_model(family, "flex_attention")
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        logits = model(expected[f"{prefix}input_ids"], attention_mask=mask).logits
    difference = logits_difference(logits, expected[f"{prefix}logits"], None if mask is None else mask > 0)
    assert difference < TOLERANCE
