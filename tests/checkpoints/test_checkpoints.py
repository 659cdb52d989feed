"""The bundled checkpoints: small enough to ship, loadable as they are, and what their cards say of them."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import BaichuanForCausalLM, BaichuanTokenizer, bundled_checkpoint
from baichuan_hf.checkpoints import resolve_model
from baichuan_hf.data.chat import build_chat_input
from baichuan_hf.training.tiny.evaluate import bits_per_byte, written_texts
from baichuan_hf.training.tiny.sources import SOURCES
from baichuan_hf.training.tiny.tokenizer import RESERVED


MIB = 2**20
CHECKPOINTS = {"tiny": 16 * MIB, "tiny-alibi": 6 * MIB}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request: pytest.FixtureRequest) -> Path:
    return bundled_checkpoint(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> BaichuanForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> BaichuanTokenizer:
    return AutoTokenizer.from_pretrained(folder)


def test_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'large'.*tiny, tiny-alibi"):
        bundled_checkpoint("large")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_path_to_nothing_is_said_to_be_one(name: str):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
        resolve_model(name)


def test_size_fits_the_package(folder: Path, model: BaichuanForCausalLM):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= CHECKPOINTS[folder.name]
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12e6


def test_weights_are_bfloat16_and_complete(folder: Path):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(report.values()), report


def test_families_differ():
    tiny, alibi = (AutoModelForCausalLM.from_pretrained(bundled_checkpoint(name)).config for name in CHECKPOINTS)
    assert (tiny.position_embedding_type, tiny.normalize_lm_head, tiny.z_loss_weight) == ("rope", True, 2e-4)
    assert (alibi.position_embedding_type, alibi.normalize_lm_head) == ("alibi", False)


def test_tokenizer_is_of_baichuan2s_kind(tokenizer: BaichuanTokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(range(3, 3 + len(RESERVED))) == RESERVED
    assert tokenizer.convert_ids_to_tokens([195, 196]) == ["<reserved_106>", "<reserved_107>"]
    text = "  两个空格，2026年\n\temoji 🎈 and a rare 龘"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("2026") == list("2026")


@pytest.mark.parametrize("question", ["你是谁？", "Who are you?"], ids=["zh", "en"])
def test_chat_tuning_took(model: BaichuanForCausalLM, tokenizer: BaichuanTokenizer, question: str):
    generation = model.generation_config
    assert (generation.user_token_id, generation.assistant_token_id) == (195, 196)
    messages = [{"role": "user", "content": question}]
    prompt = torch.tensor([build_chat_input(tokenizer, messages, model_max_length=1024, max_new_tokens=64)])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False)[0, prompt.shape[1] :]
    assert "Tiny" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("language", ["zh", "en"])
def test_recorded_bits_per_byte(folder: Path, model: BaichuanForCausalLM, tokenizer: BaichuanTokenizer, language: str):
    """On the one measured text that every clone has."""
    name = f"written for this ({language})"
    recorded = json.loads((folder / "evaluation.json").read_text())[name]
    measured = bits_per_byte(model, tokenizer, written_texts()[name])
    assert measured["bytes"] == recorded["bytes"]
    assert measured["model"] == pytest.approx(recorded["model"], abs=2e-3)
    assert measured["model"] < 0.75 * min(measured["gzip"], measured["xz"], recorded["unigram"])


def test_card_names_every_text_its_licence_and_the_numbers(folder: Path):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["zh", "en"]
    lines = card.text.splitlines()
    sources = {source.name: source for source in SOURCES}
    for name, numbers in json.loads((folder / "evaluation.json").read_text()).items():
        assert f"| {name} | {numbers['bytes']:,} | {numbers['tokens']:,} | {numbers['model']:.3f} |" in card.text
        if name in sources:
            row = next(line for line in lines if line.startswith(f"| {name} | {sources[name].language} |"))
            assert sources[name].license in row
