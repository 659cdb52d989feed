"""Bits per byte and perplexity against the model's own loss."""

import math

import pytest
import torch

from baichuan_hf import BaichuanForCausalLM, BaichuanTokenizer
from baichuan_hf.evaluation import measure_text
from baichuan_hf.evaluation.perplexity import stream_bits
from tests.helpers import FAMILIES, golden_folder, tiny_config


DOCUMENTS = ["春天来了，hello  world", "第二篇\n有两行"]


@pytest.fixture(scope="module")
def tokenizer():
    return BaichuanTokenizer.from_pretrained(golden_folder("tokenizers") / "baichuan-surrogate")


@pytest.fixture(params=["rope-normhead", "alibi"])
def model(request, tokenizer):
    torch.manual_seed(0)
    return BaichuanForCausalLM(tiny_config(vocab_size=len(tokenizer), **FAMILIES[request.param])).eval()


@torch.no_grad()
def loss_of(model, ids):
    row = torch.tensor([ids])
    return model(input_ids=row, labels=row).loss.item()


def test_every_token_counts_once(model):
    ids = torch.randint(0, 4000, (41,), generator=torch.Generator().manual_seed(0)).tolist()
    windows = [ids[start : start + 17] for start in range(0, 40, 16)]
    expected = sum(loss_of(model, window) * (len(window) - 1) for window in windows) / math.log(2)
    for batch_size in (1, 2, 8):
        assert stream_bits(model, ids, context=16, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_perplexity_is_of_the_stream(model, tokenizer):
    """</s> before, between and behind the documents; a newline's byte for each but the first."""
    first, second = (tokenizer(text).input_ids for text in DOCUMENTS)
    ids = [2, *first, 2, *second, 2]
    loss = loss_of(model, ids)
    measured = measure_text(model, tokenizer, DOCUMENTS, context=100)
    num_bytes = sum(len(text.encode()) for text in DOCUMENTS) + 2
    assert (measured["documents"], measured["bytes"], measured["tokens"]) == (2, num_bytes, len(ids) - 1)
    assert measured["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(loss / math.log(2) * (len(ids) - 1) / num_bytes, rel=1e-5)


def test_windows_are_of_the_context_length(model, tokenizer):
    long = [DOCUMENTS[0] * 20]
    context = model.config.max_position_embeddings
    assert measure_text(model, tokenizer, long) == measure_text(model, tokenizer, long, context=context)
    assert measure_text(model, tokenizer, long) != measure_text(model, tokenizer, long, context=context // 2)


def test_broken_weights_are_told(model, tokenizer):
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(FloatingPointError, match="baichuan-hf check"):
        measure_text(model, tokenizer, DOCUMENTS)
