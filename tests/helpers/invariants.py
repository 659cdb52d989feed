"""What holds for every model, whatever its config says. Each check raises an AssertionError that says what differs.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from baichuan_hf import BaichuanConfig, BaichuanForCausalLM, BaichuanForMaskedLM, BaichuanModel


PADDING = 4
LENGTH = 11
TOLERANCE = 2e-5
BFLOAT16_TOLERANCE = 0.05


class Case:
    """A random model of a config with inputs of every kind, and what it makes of them.

    Four rows: one whole, two equal texts padded on the left and on the right, and the first with its last two tokens
    changed.
    """

    def __init__(self, config: BaichuanConfig) -> None:
        self.config = config
        torch.manual_seed(0)
        model_class = BaichuanForCausalLM if config.is_causal else BaichuanForMaskedLM
        self.model = model_class(config).eval()
        self.ids = torch.randint(3, config.vocab_size, (4, LENGTH))
        if self.ids[0, 0] == self.ids[1, PADDING]:  # of which alone a causal model's pooled output comes
            self.ids[0, 0] = self.ids[0, 0] - 1 if self.ids[0, 0] > 3 else 4
        self.ids[2, :-PADDING] = self.ids[1, PADDING:]
        self.ids[3, :-2] = self.ids[0, :-2]
        self.mask = torch.ones_like(self.ids)
        self.mask[1, :PADDING] = 0
        self.mask[2, -PADDING:] = 0
        self.extra: dict[str, Tensor] = {}
        if config.type_vocab_size:
            segments = torch.randint(0, config.type_vocab_size, (4, LENGTH))
            segments[2, :-PADDING] = segments[1, PADDING:]
            segments[3] = segments[0]
            self.extra["token_type_ids"] = segments
        if config.add_cross_attention:
            states = torch.randn(4, 7, config.cross_attention_hidden_size or config.hidden_size)
            states[2], states[3] = states[1], states[0]
            self.extra["encoder_hidden_states"] = states
            self.extra["encoder_attention_mask"] = (torch.arange(7) < torch.tensor([[7], [5], [5], [7]])).long()
        self.logits = self.run()

    def inputs(self, columns: slice = slice(None)) -> dict[str, Tensor]:
        """Of some columns, with the mask up to the last of them."""
        extra = {k: v[:, columns] if k == "token_type_ids" else v for k, v in self.extra.items()}
        return {"input_ids": self.ids[:, columns], "attention_mask": self.mask[:, : columns.stop], **extra}

    @torch.no_grad()
    def run(self, model: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.inputs().items()}
        return (self.model if model is None else model)(**inputs, use_cache=False).logits

    def loss_and_gradients(self) -> tuple[float, dict[str, Tensor | None]]:
        """In training."""
        torch.manual_seed(1)
        self.model.zero_grad()
        inputs = self.inputs()
        loss = self.model(**inputs, labels=self.ids.masked_fill(self.mask == 0, -100), use_cache=False).loss
        loss.backward()
        return loss.item(), {name: weight.grad for name, weight in self.model.named_parameters()}


def check_shape_and_dtype(case: Case) -> None:
    assert case.logits.shape == (*case.ids.shape, case.config.vocab_size)
    assert case.logits.dtype == torch.float32
    assert case.logits[case.mask.bool()].isfinite().all()
    assert case.logits.std() > 0.02, "all logits are alike: the tokens do not come through"


def check_padding(case: Case) -> None:
    text = slice(PADDING, LENGTH)
    alone = {"input_ids": case.ids[1:2, text]}
    for name, value in case.extra.items():
        alone[name] = value[1:2, text] if name == "token_type_ids" else value[1:2]
    if case.config.add_cross_attention:
        alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :5]
        del alone["encoder_attention_mask"]
    with torch.no_grad():
        expected = case.model(**alone).logits[0]
    assert_equal(case.logits[1, text], expected, "left-padded", "alone")
    assert_equal(case.logits[2, :-PADDING], expected, "right-padded", "alone")


def check_pooled(case: Case) -> None:
    """Of the base model: a language model has no use for a pooled output, and leaves the layer out."""
    if not case.config.add_pooling_layer:
        return
    torch.manual_seed(0)
    pooled = BaichuanModel(case.config).eval()(**case.inputs()).pooler_output
    assert pooled.shape == (len(case.ids), case.config.hidden_size)
    assert_equal(pooled[1], pooled[2], "left-padded, pooled", "right-padded, pooled")
    assert (pooled[0] - pooled[1]).abs().max() > 1e-2, "two texts are pooled alike"


def check_future(case: Case) -> None:
    difference = (case.logits[0, :-2] - case.logits[3, :-2]).abs().max().item()
    if case.config.is_causal:
        assert difference < TOLERANCE, f"future tokens change a causal model's logits by {difference:.1e}"
    else:
        assert difference > 1e-3, f"future tokens change an encoder's logits by {difference:.1e} only"


def check_cache(case: Case) -> None:
    if not case.config.is_causal:
        return
    with torch.no_grad():
        first = case.model(**case.inputs(slice(0, 6)), use_cache=True)
        second = case.model(**case.inputs(slice(6, LENGTH)), past_key_values=first.past_key_values)
    cached = torch.cat([first.logits, second.logits], dim=1)
    assert_equal(cached, case.logits, "cached", "uncached", case.mask)


def check_packed(case: Case) -> None:
    """Two texts in a row, numbered by the mask, or refused by the kinds of attention that take no such mask."""
    segments = torch.tensor([[1] * 6 + [2] * (LENGTH - 6)])
    parts = [slice(0, 6), slice(6, LENGTH)]

    def inputs(columns: slice) -> dict[str, Tensor]:
        extra = {k: v[:1, columns] if k == "token_type_ids" else v[:1] for k, v in case.extra.items()}
        return {"input_ids": case.ids[:1, columns], **extra}

    if case.config.attention_type != "softmax" or case.config.num_global_tokens:
        try:
            case.model(**inputs(slice(None)), attention_mask=segments)
        except ValueError as error:
            assert "pad the texts" in str(error)
            return
        raise AssertionError("packed rows are neither taken nor refused")
    with torch.no_grad():
        packed = case.model(**inputs(slice(None)), attention_mask=segments, use_cache=False).logits
        alone = torch.cat([case.model(**inputs(part), use_cache=False).logits for part in parts], dim=1)
    assert_equal(packed, alone, "packed", "alone")


def check_generation(case: Case) -> None:
    """Greedy tokens of a whole and a left-padded text with every kind of cache and without. An encoder's states are
    passed on by transformers' `EncoderDecoderModel`, whose tests are in test_encoder_decoder.py."""
    if not case.config.is_causal or case.config.add_cross_attention:
        return
    inputs = {"input_ids": case.ids[:2], "attention_mask": case.mask[:2]}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    plain = case.model.generate(**inputs, **options, use_cache=False)
    for cache in ("dynamic", "static"):
        cached = case.model.generate(**inputs, **options, cache_implementation=cache)
        assert torch.equal(cached, plain), f"the {cache} cache generates other tokens: {cached}, not {plain}"


def check_eager(case: Case) -> None:
    assert case.config._attn_implementation == "sdpa"
    case.model.set_attn_implementation("eager")
    eager = case.run()
    case.model.set_attn_implementation("sdpa")
    assert_equal(eager, case.logits, "eager", "sdpa", case.mask)


def check_saved(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        again = type(case.model).from_pretrained(folder)
    assert again.config.to_dict() == case.config.to_dict() | {"_name_or_path": folder}
    assert torch.equal(case.run(again), case.logits), "the saved model's logits differ"


def check_gradients(case: Case) -> None:
    case.model.train()
    loss, gradients = case.loss_and_gradients()
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), f"the gradient of {name} is {gradient}"
    for reentrant in (False,) if case.config.num_local_experts else (False, True):
        case.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed_loss, checkpointed = case.loss_and_gradients()
        case.model.gradient_checkpointing_disable()
        name = f"gradient checkpointing (reentrant: {reentrant})"
        assert abs(checkpointed_loss - loss) < TOLERANCE, f"{name} makes the loss {checkpointed_loss}, not {loss}"
        for parameter, gradient in checkpointed.items():
            assert gradient is not None, f"{name} leaves {parameter} without a gradient"
            assert_equal(gradient, gradients[parameter], f"{name}: gradient of {parameter}", "plain")
    case.model.eval()


def check_bfloat16(case: Case) -> None:
    logits = case.run(copy.deepcopy(case.model).to(torch.bfloat16), torch.bfloat16)
    assert logits.dtype == torch.bfloat16
    actual, expected = logits[case.mask.bool()].float(), case.logits[case.mask.bool()]
    assert actual.isfinite().all()
    # Of the median token: rounding may send one to another expert.
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()
    assert error < BFLOAT16_TOLERANCE, f"the logits in bfloat16 are off by {error:.1%}"


def check_compiled(case: Case) -> None:
    """Traced without a graph break."""
    torch._dynamo.reset()
    # How far the frequencies are stretched depends on the positions' values: a break inside transformers.
    breaks = (case.config.rope_parameters or {}).get("rope_type") == "dynamic"
    compiled = torch.compile(case.model, backend="eager", fullgraph=not breaks)
    assert_equal(case.run(compiled), case.logits, "compiled", "plain", case.mask)


INVARIANTS: tuple[Callable[[Case], None], ...] = (
    check_shape_and_dtype,
    check_padding,
    check_pooled,
    check_future,
    check_cache,
    check_packed,
    check_eager,
    check_saved,
    check_gradients,
    check_bfloat16,
)


# Tracing takes a second or more.
SLOW_INVARIANTS = (check_generation, check_compiled)


def check_invariants(config: BaichuanConfig, invariants: Iterable[Callable[[Case], None]] = INVARIANTS) -> None:
    """Raises an AssertionError for the first invariant that a model of this config breaks."""
    case = Case(copy.deepcopy(config))
    for invariant in invariants:
        invariant(case)


def assert_equal(actual: Tensor, expected: Tensor, name: str, other: str, mask: Tensor | None = None) -> None:
    if mask is not None:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    difference = (actual - expected).abs().max().item()
    assert difference < TOLERANCE * max(1, expected.abs().max().item()), (
        f"{name} differs from {other} by {difference:.1e}"
    )
