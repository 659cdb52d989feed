"""The card that a run writes."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import LlamaForSequenceClassification

from baichuan_hf import BaichuanForSequenceClassification
from baichuan_hf.hub import CARD_FILES, load_card, render_card
from baichuan_hf.training import ClassifyArguments, LanguageModelArguments, train
from tests.helpers.checkpoint import quiet_arguments, reviews, save_checkpoint, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    save_checkpoint(folder / "base")
    write_csv(folder / "reviews.csv", reviews())
    return folder


def classify(folder: Path, out: Path, *, hub: bool = False, **values) -> dict[str, float]:
    columns = {"text_column": "review", "label_column": "stars", "train_file": str(folder / "reviews.csv")}
    arguments = ClassifyArguments(task="classify", **({"model": str(folder / "base")} | columns | values))
    return train(arguments, quiet_arguments(out, num_train_epochs=1, logging_steps=2, push_to_hub=hub))


def run_its_code(out: Path) -> dict:
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL).group(1)
    exec(code, names := {})
    return names


def test_card_says_what_was_done_and_how_to_load_it(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra `bench`")
    metrics = classify(folder, tmp_path / "out", license="mit")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "text-classification")
    results = {row.metric_type: row.metric_value for row in card.data.eval_results}
    assert results["accuracy"] == round(metrics["eval_accuracy"], 4)
    assert "runtime" not in str(results)
    assert "trained on | reviews.csv | 38 | `" in card.text
    assert "evaluated on | 0.2 of it | 10 |" in card.text
    assert "![loss](loss.png)" in card.text
    assert (tmp_path / "out" / "loss.png").is_file()
    for line in (tmp_path / "out" / "arguments.yaml").read_text().splitlines()[1:]:
        assert line in card.text
    for package in ("baichuan-hf", "transformers", "torch", "datasets"):
        assert re.search(rf"^\| {package} \| \d+\.\d+", card.text, re.MULTILINE)
    assert type(run_its_code(tmp_path / "out")["model"]) is BaichuanForSequenceClassification
    for language, file in CARD_FILES.items():
        rendered = render_card(load_card(str(tmp_path / "out")), language).content
        assert (tmp_path / "out" / file).read_text() == rendered


def test_cards_of_an_adapter_and_of_the_merged_model(folder, tmp_path):
    classify(folder, tmp_path / "out", model="tiny", lora=True, merge=True, layout="llama")
    adapter, merged = ModelCard.load(tmp_path / "out/README.md"), ModelCard.load(tmp_path / "out/merged/README.md")
    assert (adapter.data.library_name, merged.data.library_name) == ("peft", "transformers")
    assert (adapter.data.license, merged.data.license) == ("apache-2.0", "apache-2.0")  # that of tiny
    assert "with the base model under it: tiny" in adapter.text
    names = run_its_code(tmp_path / "out")
    assert type(names["model"].get_base_model()) is BaichuanForSequenceClassification
    names = run_its_code(tmp_path / "out" / "merged")
    assert "baichuan_hf" not in names
    assert type(names["model"]) is LlamaForSequenceClassification


def test_licence_comes_from_the_card_of_the_model(folder, tmp_path):
    card = "---\nlicense: other\nlicense_name: theirs\nlicense_link: https://example.org\n---\n"
    save_checkpoint(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(card)
    classify(folder, tmp_path / "out", model=str(tmp_path / "base"))
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license_name, data.license_link) == ("theirs", "https://example.org")


@pytest.mark.parametrize("card", [None, "no head", "---\nlicense: other\n---\n"], ids=["none", "headless", "nameless"])
def test_unknown_licence_is_said_to_be_and_not_pushed(folder, tmp_path, card):
    save_checkpoint(tmp_path / "base")
    if card is not None:
        (tmp_path / "base" / "README.md").write_text(card)
    with pytest.raises(ValueError, match="--push-to-hub needs a card with a licence.*give --license"):
        classify(folder, tmp_path / "out", model=str(tmp_path / "base"), hub=True)
    assert not (tmp_path / "out").exists()
    classify(folder, tmp_path / "out", model=str(tmp_path / "base"))
    assert yaml.safe_load((tmp_path / "out" / "card.yaml").read_text())["metadata"]["license"] == "unknown"
    assert "ask those whose weights and data these are made of" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layout": "llama", "lora": True}, "--layout llama is for a whole model: .* needs --merge"),
        ({"layout": "llama", "tensor_parallel_size": 2}, "with --tensor-parallel-size convert it afterwards"),
        ({"license": "other"}, "license_name and license_link in the head of the README.md of --model"),
        ({"layout": "llama", "model": "tiny-alibi"}, "position_embedding_type='alibi' cannot become Llama"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_training(folder, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        classify(folder, tmp_path / "out", **values)
    assert not (tmp_path / "out" / "arguments.yaml").exists()


def test_model_from_scratch_says_so(tmp_path):
    (tmp_path / "text.txt").write_text("一二三四五六七八九十\n\n" * 40)
    arguments = LanguageModelArguments(
        task="pretrain", model="tiny", from_scratch=True, train_file=str(tmp_path / "text.txt"), max_length=16
    )
    train(arguments, quiet_arguments(tmp_path / "out", max_steps=1))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "from random weights, in the shape of `tiny`" in text
    assert "| perplexity | " in text
