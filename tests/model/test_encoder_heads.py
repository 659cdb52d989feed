"""Encoders (`is_causal=False`): masked language model, pooled classification, images."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM, ViTImageProcessor, pipeline

import baichuan_hf
from baichuan_hf import (
    BaichuanForImageClassification,
    BaichuanForMaskedLM,
    BaichuanForQuestionAnswering,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    BaichuanModel,
)
from tests.helpers import tiny_config
from tests.helpers.golden import TOLERANCE


LENGTHS = [7, 4, 1]
ENCODERS = {
    "rope": {},
    "learned": {"position_embedding_type": "learned", "type_vocab_size": 2, "embedding_norm": True},
    "alibi": {"position_embedding_type": "alibi"},
    "longformer": {"sliding_window": 2, "num_global_tokens": 1, "position_embedding_type": "learned"},
    "linformer": {"attention_type": "linformer", "position_embedding_type": "sinusoidal", "projected_length": 8},
    "performer": {"attention_type": "performer"},
}


def make(cls, **settings):
    torch.manual_seed(0)
    return cls(tiny_config(is_causal=False, initializer_range=0.3, **settings)).eval()


def padded(side):
    columns = torch.arange(max(LENGTHS))
    mask = (columns < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(3, 128, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    return (ids.flip(1), mask.flip(1)) if side == "left" else (ids, mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooler", [False, True], ids=["first-token", "pooler"])
@pytest.mark.parametrize("settings", ENCODERS.values(), ids=ENCODERS)
def test_a_text_is_classified_by_its_first_token(settings, pooler, side):
    model = make(BaichuanForSequenceClassification, add_pooling_layer=pooler, num_labels=3, **settings)
    ids, mask = padded(side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for row in range(len(LENGTHS)):
            outputs = model.model(ids[row, mask[row].bool()][None])
            pooled = outputs.last_hidden_state[:, 0]
            if pooler:
                pooled = torch.tanh(F.linear(pooled, model.model.pooler.weight, model.model.pooler.bias))
                torch.testing.assert_close(outputs.pooler_output, pooled)
            assert (model.score(pooled)[0] - logits[row]).abs().max() < TOLERANCE
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "cls",
    [BaichuanForMaskedLM, BaichuanForTokenClassification, BaichuanForQuestionAnswering],
    ids=lambda c: c.__name__,
)
def test_heads_that_do_not_pool_leave_the_pooler_out(cls, tmp_path):
    base = make(BaichuanModel, add_pooling_layer=True)
    assert base.pooler is not None
    base.save_pretrained(tmp_path)
    model = cls.from_pretrained(tmp_path)
    assert model.model.pooler is None
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, base.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("settings", ENCODERS.values(), ids=ENCODERS)
def test_masked_language_model_loss(settings):
    model = make(BaichuanForMaskedLM, **settings)
    ids, mask = padded("right")
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5, -100)
    labels = labels.masked_fill(mask == 0, -100)
    outputs = model(ids, attention_mask=mask, labels=labels)
    chosen = labels != -100
    expected = F.cross_entropy(outputs.logits[chosen], labels[chosen])
    torch.testing.assert_close(outputs.loss, expected)
    half = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=2 * chosen.sum()).loss
    torch.testing.assert_close(half, expected / 2)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("normalized", [False, True], ids=["linear", "normhead"])
def test_masked_language_model_resizes_and_reloads(tmp_path, tied, normalized):
    model = make(BaichuanForMaskedLM, tie_word_embeddings=tied, normalize_lm_head=normalized)
    torch.nn.init.normal_(model.lm_head.decoder.bias)
    ids, _ = padded("right")
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(140)
        after = model(ids).logits
    torch.testing.assert_close(after[..., :128], before)
    assert after.shape[-1] == 140
    assert type(model.get_output_embeddings()).__name__ == ("NormHead" if normalized else "Linear")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForMaskedLM.from_pretrained(tmp_path)(ids).logits, after)


def test_fill_mask_pipeline(tmp_path):
    tokenizer = baichuan_hf.BaichuanTokenizer.from_pretrained(baichuan_hf.bundled_checkpoint("tiny"))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    model = make(BaichuanForMaskedLM, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = pipeline("fill-mask", model=str(tmp_path), top_k=3)("The weather <mask> fine")
    with torch.no_grad():
        ids = tokenizer("The weather <mask> fine", return_tensors="pt")
        position = ids.input_ids[0].tolist().index(tokenizer.mask_token_id)
        expected = model(**ids).logits[0, position].topk(3).indices.tolist()
    assert [word["token"] for word in found] == expected


IMAGE = {"image_size": 12, "patch_size": 4, "max_position_embeddings": 10, "position_embedding_type": "learned"}


@pytest.mark.parametrize("pooler", [False, True], ids=["class-token", "pooler"])
def test_image_classification(tmp_path, pooler):
    model = make(BaichuanForImageClassification, num_labels=5, add_pooling_layer=pooler, **IMAGE)
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 4])
    outputs = model(pixels, labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    moved = pixels.roll(4, dims=-1)  # the same patches in other places
    assert not torch.allclose(model(moved).logits, outputs.logits, atol=1e-3)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixels).logits, outputs.logits)
    ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    image = pytest.importorskip("PIL.Image", reason="pip install pillow").new("RGB", (30, 20), (200, 10, 10))
    scores = pipeline("image-classification", model=str(tmp_path), top_k=5)(image)
    assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-4)


def test_image_of_another_size():
    model = make(BaichuanForImageClassification, **IMAGE)
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\).*\(batch, 3, 12, 12\)"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="max_position_embeddings is 9: set it to 10"):
        make(BaichuanForImageClassification, **IMAGE | {"max_position_embeddings": 9})
