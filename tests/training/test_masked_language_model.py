"""`--task mlm`: which words are hidden, and a run from end to end."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from baichuan_hf import BaichuanTokenizer, bundled_checkpoint
from baichuan_hf.adapters.loading import load_adapted
from baichuan_hf.adapters.merging import merge_folder
from baichuan_hf.data import masking
from baichuan_hf.data.masking import WholeWordMasking, split_words, word_numbers
from baichuan_hf.training import train
from baichuan_hf.training.tasks.masked_language_model import MaskedLanguageModelArguments, encode_words
from tests.helpers.checkpoint import quiet_arguments


TEXT = "The unbelievable cats, 春天来了 42 times 😀"


@pytest.fixture
def tokenizer():
    tokenizer = BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


@pytest.fixture
def without_jieba(monkeypatch):
    monkeypatch.setattr(masking.importlib.util, "find_spec", lambda name: None)


def test_words(without_jieba):
    words = [TEXT[start:end] for start, end in split_words()(TEXT)]
    assert words == ["The", "unbelievable", "cats", ",", "春", "天", "来", "了", "42", "times", "😀"]


def test_chinese_words_by_jieba():
    pytest.importorskip("jieba", reason="pip install 'baichuan-hf[chinese]'")
    assert [TEXT[start:end] for start, end in split_words()(TEXT)][4:6] == ["春天", "来"]


def test_every_token_of_a_word_has_its_number(tokenizer, without_jieba):
    encoded = tokenizer(TEXT, return_offsets_mapping=True)
    numbers = word_numbers(iter(split_words()(TEXT)), encoded["offset_mapping"])
    words = [TEXT[start:end] for start, end in split_words()(TEXT)]
    for number, word in enumerate(words):
        pieces = [token for token, of in zip(encoded["input_ids"], numbers, strict=True) if of == number]
        assert tokenizer.decode(pieces).strip() == word
    assert numbers.count(1) > 1  # "unbelievable" has several tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_whole_words_are_hidden(tokenizer, without_jieba, side):
    tokenizer.padding_side = side
    rows = list(encode_words(Dataset.from_dict({"text": [TEXT * 3, "猫", "One more sentence."] * 40}), tokenizer, 64))
    torch.manual_seed(0)
    batch = WholeWordMasking(tokenizer, 0.3)(rows)
    hidden, real = batch["labels"] != -100, batch["attention_mask"].bool()
    assert hidden.any(dim=1).all()
    assert not (hidden & ~real).any()
    for row, mask, labels, tokens in zip(rows, hidden, batch["labels"], real, strict=True):
        words, mask, labels = torch.tensor(row["words"]), mask[tokens], labels[tokens]
        for word in words.unique():
            assert mask[words == word].unique().numel() == 1
        assert not mask[words == -1].any()
        assert torch.equal(labels[mask], torch.tensor(row["input_ids"])[mask])
    share = hidden.sum() / real.sum()
    assert 0.2 < share < 0.4
    masked = (batch["input_ids"] == tokenizer.mask_token_id) & hidden
    assert 0.7 < masked.sum() / hidden.sum() < 0.9
    kept = batch["input_ids"][~hidden & real]
    assert torch.equal(kept, torch.cat([torch.tensor(row["input_ids"]) for row in rows])[~hidden[real]])


def run(tmp_path, text_file, folder, **values):
    arguments = MaskedLanguageModelArguments("mlm", str(text_file), max_length=24, **values)
    options = {
        "max_steps": 40,
        "eval_on_start": True,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 8,
    }
    return train(arguments, quiet_arguments(tmp_path / folder, **options))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"cats and dogs, 猫和狗, number {number}" for number in range(60)), "utf-8")
    return path


@pytest.mark.parametrize("method", [{}, {"lora": True, "merge": True}], ids=["full", "lora"])
def test_a_causal_checkpoint_becomes_an_encoder_that_fills_masks(tmp_path, text_file, method):
    run(tmp_path, text_file, "out", **method)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    before, after = (entry["eval_loss"] for entry in history if "eval_loss" in entry)
    assert after < before - 1
    folder = tmp_path / "out" / "merged" if method else tmp_path / "out"
    assert not AutoModelForMaskedLM.from_pretrained(folder).config.is_causal
    if not method:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.mask_token_id == len(tokenizer) - 1
        (best, *_) = pipeline("fill-mask", model=str(folder))("cats and dogs, 猫<mask>狗, number 7")
        assert best["token_str"] in "cats and dogs, 猫和狗, number 0123456789"


def test_adapters_come_with_what_is_new(tmp_path, text_file):
    """The head of a masked language model, and the mask token: with random ones adapters would be of little use."""
    run(tmp_path, text_file, "out", lora=True, merge=True)
    before = AutoModelForMaskedLM.from_pretrained(bundled_checkpoint("tiny"), is_causal=False, dtype=torch.float32)
    embeddings = before.model.embed_tokens.weight
    after = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(after.model.embed_tokens.weight[:-1], embeddings)
    mean = embeddings.mean(0)  # where transformers puts a new row
    assert (after.model.embed_tokens.weight[-1] - mean).norm() > 0.1 * mean.norm()
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert any("lm_head.dense.weight" in name for name in names)
    assert any("lm_head.decoder.weight" in name for name in names)
    adapted = load_adapted(tmp_path / "out", AutoModelForMaskedLM, dtype=torch.float32)
    ids = torch.tensor([[40, 6144, 50]])
    torch.testing.assert_close(adapted(input_ids=ids).logits, after(ids).logits, atol=1e-4, rtol=1e-4)
    merge_folder(tmp_path / "out", tmp_path / "dst", dtype=torch.float32)
    later = AutoModelForMaskedLM.from_pretrained(tmp_path / "dst")
    torch.testing.assert_close(later.state_dict(), after.state_dict())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "dst")) == 6145


def test_from_scratch(tmp_path, text_file):
    values = {"model": "tiny", "from_scratch": True, "config_overrides": "num_hidden_layers=1,norm_type=layer_norm"}
    assert run(tmp_path, text_file, "out", **values)["eval_loss"] < 9


def test_a_share_that_is_none(tmp_path, text_file):
    with pytest.raises(ValueError, match="--mlm-probability is 1.5"):
        run(tmp_path, text_file, "out", mlm_probability=1.5)
