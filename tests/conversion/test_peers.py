"""Converted models give what transformers' own give: outputs, losses, tokens."""

import pytest
import torch
from transformers import EncoderDecoderModel
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from baichuan_hf import from_transformers
from baichuan_hf.benchmarks.peers import (
    CONFIGURATIONS,
    CONFIGURED,
    LENGTHS,
    SEEDS,
    build_reference,
    draw_inputs,
    greedy_tokens,
    largest_difference,
    paddings,
    reference_inputs,
)
from baichuan_hf.conversion import ARCHITECTURES
from baichuan_hf.model.position_biases import alibi_slopes
from baichuan_hf.model.registration import AUTO_CLASSES
from tests.helpers.converted import CLASSES, FIRST, pair


TOLERANCE = 1e-4

each_configuration = pytest.mark.parametrize(
    ("kind", "name"), CONFIGURED, ids=[f"{kind}-{name}" for kind, name in CONFIGURED]
)
each_class = pytest.mark.parametrize(("kind", "model_class"), CLASSES, ids=[name for _, name in CLASSES])
each_kind = pytest.mark.parametrize("kind", ARCHITECTURES)
# Base models have no loss, nor has what a ViTModel becomes, whose classifier has no labels.
with_loss = [(kind, name) for kind, name in CLASSES if not name.endswith("Model")]
with_loss += [("gpt2", "GPT2LMHeadModel"), ("marian", "MarianMTModel")]
generating = [(kind, name) for kind, name in CONFIGURED if kind not in ("bert", "longformer", "t5", "vit")]


def test_every_architecture_is_compared():
    assert set(CONFIGURATIONS) == set(ARCHITECTURES)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("seed", SEEDS)
@each_configuration
def test_outputs_equal(kind, name, seed, length):
    reference, ours = pair(kind, name, seed=seed)
    for padding in paddings(reference):
        assert largest_difference(reference, ours, length=length, padding=padding) < TOLERANCE, padding


@each_class
def test_classes_equal(kind, model_class):
    reference, ours = pair(kind, model_class=model_class)
    assert type(ours).__name__ == ARCHITECTURES[kind].classes[model_class]
    for padding in paddings(reference):
        assert largest_difference(reference, ours, length=19, padding=padding) < TOLERANCE, padding


@pytest.mark.parametrize(("kind", "model_class"), with_loss, ids=[name for _, name in with_loss])
def test_losses_and_gradients_equal(kind, model_class):
    reference, ours = pair(kind, model_class=model_class)
    inputs = draw_inputs(reference, 13, paddings(reference)[-1])
    inputs |= labels_for(reference, inputs)
    if kind == "marian":
        # As DataCollatorForSeq2Seq does it: of labels alone transformers' EncoderDecoderModel hides what is padding,
        # and Marian's first token of a text is the padding token.
        inputs["decoder_input_ids"] = ours.prepare_decoder_input_ids_from_labels(inputs["labels"])
    if kind == "mixtral" and "labels" in inputs:
        inputs["output_router_logits"] = True  # theirs adds the routers' loss only then
    expected, actual = reference(**reference_inputs(reference, inputs)).loss, ours(**inputs).loss
    assert actual.item() == pytest.approx(expected.item(), abs=1e-5)
    if kind not in ("marian", "vit"):  # the one shares its embeddings, the other has none
        losses = {reference: expected, ours: actual}
        gradients = [
            torch.autograd.grad(loss, model.get_input_embeddings().weight)[0] for model, loss in losses.items()
        ]
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)


def labels_for(reference, inputs):
    """Targets of the shape that the head of `reference` wants."""
    name = type(reference).__name__
    if name.endswith("ForQuestionAnswering"):
        return {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([4, 5, 6])}
    if name.endswith(("SequenceClassification", "ImageClassification")):
        return {"labels": torch.tensor([1, 0, 1])}
    labels = torch.randint(0, 2 if name.endswith("TokenClassification") else 87, (3, 13))
    labels[0, 5:9] = -100
    return {"labels": labels.masked_fill(inputs["attention_mask"] == 0, -100)}


def test_losses_of_experts_are_in_it():
    """Or the comparison above would hold with both left out."""
    reference, _ = pair("mixtral")
    inputs = draw_inputs(reference, 13, "none")
    inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        with_routers, without = (reference(**inputs, output_router_logits=x).loss.item() for x in (True, False))
    assert with_routers - without > 0.05


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize(("kind", "name"), generating, ids=[f"{kind}-{name}" for kind, name in generating])
def test_greedy_tokens_equal(kind, name, use_cache):
    models = pair(kind, name)
    inputs = draw_inputs(models[0], 12, paddings(models[0])[1])
    tokens = [greedy_tokens(model, inputs, use_cache=use_cache) for model in models]
    assert torch.equal(*tokens)


def test_beams_of_an_encoder_decoder_equal():
    models = pair("marian")
    inputs = draw_inputs(models[0], 9, "right")
    assert torch.equal(*(greedy_tokens(model, inputs, num_beams=3) for model in models))


def test_bias_of_the_logits_is_there_if_it_counts():
    reference = build_reference("marian", FIRST["marian"])
    assert from_transformers(reference).decoder.config.lm_head_bias
    reference.final_logits_bias.zero_()
    ours = from_transformers(reference)
    assert not ours.decoder.config.lm_head_bias
    assert largest_difference(reference, ours, length=9) < TOLERANCE


def test_segments_are_zero_by_default():
    reference, ours = pair("bert", model_class="BertModel")
    ids = torch.randint(3, 97, (2, 9))
    with torch.no_grad():
        expected, actual = reference(ids), ours(ids)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("num_global_tokens", [1, 3])
def test_longformer_with_more_global_tokens(num_global_tokens, backend):
    reference = build_reference("longformer", "window-4")
    ours = from_transformers(reference)
    ours.config.num_global_tokens = num_global_tokens
    ours.set_attn_implementation(backend)
    for length in (3, 4, 5, 8, 21):  # below, at and above the window of 4, and what is no multiple of it
        inputs = draw_inputs(reference, length, "right")
        with torch.no_grad():
            expected = reference(**reference_inputs(reference, inputs, num_global_tokens)).logits
            actual = ours(**inputs).logits
        mask = inputs["attention_mask"].bool()
        if (mask.sum(-1) >= num_global_tokens).all():
            torch.testing.assert_close(actual[mask], expected[mask], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", range(1, 65))
def test_slopes_equal_those_of_bloom_and_mpt(heads):
    """Those of MPT come in another order of computing, for head counts that are no power of two too."""
    slopes = alibi_slopes(heads)
    torch.testing.assert_close(build_mpt_alibi_tensor(heads, 2)[:, 0, 0], -slopes, rtol=1e-6, atol=0)
    bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)
    torch.testing.assert_close(bloom[:, 0, 1], slopes, rtol=1e-6, atol=0)


@each_kind
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    reference, ours = pair(kind)
    ours.save_pretrained(tmp_path)
    loaded = auto_class(ours).from_pretrained(tmp_path)
    assert type(loaded) is type(ours)
    inputs = draw_inputs(reference, 14, paddings(reference)[-1])
    with torch.no_grad():
        expected, actual = ours(**inputs), loaded(**inputs)
    name = "logits" if "logits" in expected else "last_hidden_state"
    assert torch.equal(actual[name], expected[name])
    if ours.can_generate():
        assert torch.equal(greedy_tokens(ours, inputs), greedy_tokens(loaded, inputs))


def auto_class(model):
    import transformers

    if isinstance(model, EncoderDecoderModel):
        return transformers.AutoModelForSeq2SeqLM
    return getattr(transformers, next(name for name, ours in AUTO_CLASSES.items() if ours is type(model)))


@each_kind
def test_dtype_mode_and_generation_settings_are_kept(kind):
    reference = build_reference(kind, FIRST[kind]).to(torch.bfloat16).train()
    if reference.can_generate():
        reference.generation_config.update(max_new_tokens=7, repetition_penalty=1.5)
    ours = from_transformers(reference)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert ours.training
    assert all(parameter.requires_grad for parameter in ours.parameters())
    if reference.can_generate():
        assert ours.generation_config.to_dict() == reference.generation_config.to_dict()
        assert ours.generation_config is not reference.generation_config


@each_kind
def test_models_share_no_weights(kind):
    reference = build_reference(kind, FIRST[kind])
    before = {name: weight.clone() for name, weight in reference.state_dict().items()}
    ours = from_transformers(reference)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in reference.state_dict().items())
