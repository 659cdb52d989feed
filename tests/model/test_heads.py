"""Classification and question-answering heads: pooling, losses, pipelines."""

import functools

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

import baichuan_hf
from tests.helpers import FAMILIES, golden_folder, tiny_config
from tests.helpers.golden import TOLERANCE


LENGTHS = [7, 4, 1]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def make(cls, family, **overrides):
    torch.manual_seed(0)
    # Wide weights: with the usual 0.02 tokens hardly change what others give.
    return cls(tiny_config(initializer_range=0.3, **FAMILIES[family], **overrides)).eval()


def padded(side, pad=0, width=None):
    width = width or max(LENGTHS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(LENGTHS), width), pad)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        columns = slice(width - length, None) if side == "left" else slice(0, length)
        ids[row, columns] = torch.randint(3, 128, (length,), generator=generator)
        mask[row, columns] = 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["mask", "pad-token", "embeddings-and-mask"])
def test_a_text_is_classified_by_its_last_token(family, side, given):
    model = make(baichuan_hf.BaichuanForSequenceClassification, family, num_labels=3)
    ids, mask = padded(side)
    with torch.no_grad():
        if given == "embeddings-and-mask":
            logits = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).logits
        elif given == "mask":
            logits = model(ids, attention_mask=mask).logits
        else:
            logits = model(ids, attention_mask=mask if side == "left" else None).logits
        for row in range(len(LENGTHS)):
            hidden = model.model(ids[row, mask[row].bool()][None]).last_hidden_state[:, -1]
            assert (model.score(hidden)[0] - logits[row]).abs().max() < TOLERANCE
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_a_pad_token_inside_the_text_is_no_end():
    """Baichuan pads with <unk>, which a text may hold, and may end with: the mask says where a text ends."""
    model = make(baichuan_hf.BaichuanForSequenceClassification, "rope", num_labels=3)
    ids, mask = torch.tensor([[5, 0, 6, 0]]), torch.tensor([[1, 1, 1, 1]])
    with torch.no_grad():
        last = model.score(model.model(ids, attention_mask=mask).last_hidden_state[:, -1])
        assert torch.allclose(model(ids, attention_mask=mask).logits, last, atol=1e-5)


def test_batch_without_pad_token_or_mask():
    model = make(baichuan_hf.BaichuanForSequenceClassification, "rope", num_labels=2, pad_token_id=None)
    ids, mask = padded("right", pad=1)
    with pytest.raises(ValueError, match="pad_token_id"):
        model(ids)
    assert model(ids, attention_mask=mask).logits.shape == (3, 2)
    assert model(ids[:1]).logits.shape == (1, 2)


def reference_loss(logits, labels, problem_type):
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze())
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels)


PROBLEMS = {
    "single-label": (3, torch.tensor([2, 0, 1]), "single_label_classification"),
    "multi-label": (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]]), "multi_label_classification"),
    "regression": (1, torch.tensor([0.5, -1.0, 2.0]), "regression"),
    "regression-2d": (2, torch.tensor([[0.5, 1], [-1.0, 0], [2.0, 0.25]]), "regression"),
}


@pytest.mark.parametrize(
    "problem, declared",
    # Two numbers per text look like several labels: there problem_type has to say what they are.
    [
        (problem, declared)
        for problem in PROBLEMS
        for declared in (True, False)
        if declared or problem != "regression-2d"
    ],
)
def test_losses_of_the_problem_types(problem, declared):
    num_labels, labels, problem_type = PROBLEMS[problem]
    overrides = {"problem_type": problem_type} if declared else {}
    model = make(baichuan_hf.BaichuanForSequenceClassification, "alibi", num_labels=num_labels, **overrides)
    ids, mask = padded("right")
    output = model(ids, attention_mask=mask, labels=labels)
    assert torch.allclose(output.loss, reference_loss(output.logits, labels, problem_type))
    output.loss.backward()
    assert model.score.weight.grad.abs().sum() > 0
    assert model.model.layers[0].self_attn.o_proj.weight.grad.abs().sum() > 0


def test_token_labels(family):
    model = make(baichuan_hf.BaichuanForTokenClassification, family, num_labels=5)
    ids, mask = padded("right")
    labels = torch.where(mask.bool(), ids % 5, -100)
    output = model(ids, attention_mask=mask, labels=labels)
    assert output.logits.shape == (*ids.shape, 5)
    expected = F.cross_entropy(output.logits[mask.bool()], labels[mask.bool()])
    assert torch.allclose(output.loss, expected)
    with torch.no_grad():
        alone = model(ids[1:2, : LENGTHS[1]]).logits[0]
    assert (alone - output.logits[1, : LENGTHS[1]]).abs().max() < TOLERANCE


def test_answer_spans(family):
    model = make(baichuan_hf.BaichuanForQuestionAnswering, family)
    ids, mask = padded("right")
    start, end = torch.tensor([1, 0, 0]), torch.tensor([5, 3, 0])
    output = model(ids, attention_mask=mask, start_positions=start, end_positions=end)
    assert output.start_logits.shape == output.end_logits.shape == ids.shape
    expected = (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
    assert torch.allclose(output.loss, expected)


@pytest.mark.parametrize(
    "cls, labels, num_labels",
    [
        ("BaichuanForSequenceClassification", torch.tensor([0, 3, 1]), 3),
        ("BaichuanForSequenceClassification", torch.tensor([0, -1, 1]), 3),
        ("BaichuanForTokenClassification", torch.full((3, 7), 3), 3),
        ("BaichuanForCausalLM", torch.full((3, 7), 128), 128),
    ],
    ids=["sequence-high", "sequence-negative", "token", "causal"],
)
def test_labels_outside_the_range(cls, labels, num_labels):
    model = make(getattr(baichuan_hf, cls), "rope", num_labels=3)
    ids, mask = padded("right")
    with pytest.raises(ValueError, match=r"labels") as error:
        model(ids, attention_mask=mask, labels=labels)
    assert str(num_labels - 1) in str(error.value)
    assert str(labels.max().item()) in str(error.value)


@functools.cache
def tokenizer():
    return AutoTokenizer.from_pretrained(golden_folder("tokenizers/baichuan-surrogate"))


@pytest.fixture
def saved(tmp_path):
    """Saves a model of a class with the tokenizer; what `pipeline` gets is a folder, as a user has it."""

    def save(cls, **overrides):
        torch.manual_seed(0)
        config = tiny_config(vocab_size=5000, initializer_range=0.3, **overrides)
        cls(config).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_classification_pipeline(saved, side):
    folder = saved(
        baichuan_hf.BaichuanForSequenceClassification, id2label={0: "差", 1: "好"}, label2id={"差": 0, "好": 1}
    )
    classify = pipeline("text-classification", model=folder)
    classify.tokenizer.padding_side = side
    texts = ["房间很好", "The room was terrible, and so was breakfast."]
    results = classify(texts, batch_size=2)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text, result in zip(texts, results, strict=True):
        with torch.no_grad():
            probabilities = model(**tokenizer()(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert result["label"] == "差好"[probabilities.argmax()]
        assert result["score"] == pytest.approx(probabilities.max().item(), abs=1e-4)


def test_token_classification_pipeline(saved):
    folder = saved(baichuan_hf.BaichuanForTokenClassification, num_labels=3)
    text = "我在北京 and Paris"
    entities = pipeline("token-classification", model=folder, ignore_labels=[])(text)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    encoded = tokenizer()(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        predicted = model(**encoded).logits[0].argmax(-1)
    assert [entity["entity"] for entity in entities] == [model.config.id2label[i.item()] for i in predicted]
    assert [[entity["start"], entity["end"]] for entity in entities] == offsets


def test_question_answering_loads_through_its_auto_class(saved):
    """Transformers 5 has no pipeline for it; the span is the pair of largest logits within the context."""
    folder = saved(baichuan_hf.BaichuanForQuestionAnswering)
    encoded = tokenizer()("谁写了这首诗？", "这首诗是李白写的。", return_tensors="pt")
    model, info = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        output = model.eval()(**encoded)
        hidden = model.model(**encoded).last_hidden_state
        logits = torch.nn.functional.linear(hidden, model.qa_outputs.weight, model.qa_outputs.bias)
    assert torch.allclose(torch.stack([output.start_logits, output.end_logits], dim=-1), logits, atol=1e-5)


def test_text_generation_pipeline(saved):
    folder = saved(baichuan_hf.BaichuanForCausalLM)
    generate = pipeline("text-generation", model=folder)
    text = generate("春天", do_sample=False, max_new_tokens=6, return_full_text=False)[0]["generated_text"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = tokenizer()("春天", return_tensors="pt")
    ids = model.generate(**encoded, do_sample=False, max_new_tokens=6)[0, encoded["input_ids"].shape[1] :]
    assert text == tokenizer().decode(ids, skip_special_tokens=True)


def test_text_generation_pipeline_takes_a_conversation(saved):
    folder = saved(baichuan_hf.BaichuanForCausalLM)
    generate = pipeline("text-generation", model=folder)
    messages = [{"role": "user", "content": "你好"}]
    result = generate(messages, do_sample=False, max_new_tokens=4)[0]["generated_text"]
    assert result[0] == messages[0]
    assert result[-1]["role"] == "assistant"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("is_causal", [True, False], ids=["decoder", "encoder"])
def test_a_text_is_classified_by_the_mean_over_its_tokens(is_causal, side):
    model = make(baichuan_hf.BaichuanForSequenceClassification, "rope", is_causal=is_causal, classifier_pooling="mean")
    ids, mask = padded(side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, attention_mask=mask.bool()).logits, logits)
        for row in range(len(LENGTHS)):
            text = ids[row, mask[row].bool()][None]
            expected = model.score(model.model(text).last_hidden_state.mean(dim=1))[0]
            assert (expected - logits[row]).abs().max() < TOLERANCE
            assert (model(text).logits[0] - logits[row]).abs().max() < TOLERANCE


def test_two_ways_to_pool_are_refused():
    with pytest.raises(StrictDataclassError) as error:
        tiny_config(is_causal=False, add_pooling_layer=True, classifier_pooling="mean")
    assert "classifier_pooling='mean' does not go with add_pooling_layer=True" in str(error.value.__cause__)
