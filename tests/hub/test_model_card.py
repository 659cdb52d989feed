"""The model cards: their heads, model_cards/ as what their data renders to, and their code, which runs."""

import json
import re

import pytest
import typer
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from baichuan_hf import BaichuanConfig, bundled_checkpoint
from baichuan_hf.cli.main import app
from baichuan_hf.evaluation import find_tasks
from baichuan_hf.hub import CARD_FILES, list_cards, load_card, render_card
from tests.helpers import REPOSITORY
from tests.helpers.checkpoint import save_checkpoint


PUBLISHED = [name for name in list_cards() if name.startswith("Baichuan")]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run(*words):
    return CliRunner().invoke(app, ["card", *map(str, words)])


def test_every_family_has_its_cards():
    assert set(PUBLISHED) == {
        "Baichuan-7B",
        *(
            f"{family}-{kind}"
            for family in ("Baichuan-13B", "Baichuan2-7B", "Baichuan2-13B")
            for kind in ("Base", "Chat")
        ),
    }
    assert run().stdout.split() == list_cards() == [*PUBLISHED, "tiny", "tiny-alibi"]


@pytest.mark.parametrize("language", CARD_FILES)
@pytest.mark.parametrize("name", list_cards())
def test_card_in_the_repository_is_what_the_data_renders_to(name, language):
    folder = REPOSITORY / "model_cards" / name
    assert (folder / CARD_FILES[language]).read_text(encoding="utf-8") == render_card(
        load_card(name), language
    ).content


@pytest.mark.parametrize("name", list_cards())
def test_head_of_the_card(name):
    """As the Hub reads it back."""
    card = ModelCard.load(REPOSITORY / "model_cards" / name / "README.md")
    assert card.data.language == ["zh", "en"]
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-generation", "transformers")
    rows = load_card(name)["results"]
    read = {(row.dataset_name, row.metric_type): row.metric_value for row in card.data.eval_results}
    assert read == {(row["dataset_name"], row["metric_type"]): row["metric_value"] for row in rows}
    if name in PUBLISHED:
        assert card.data.license == "other"
        assert card.data.license_link.startswith("https://huggingface.co/baichuan-inc/")
        assert card.data.base_model == f"baichuan-inc/{name}"
        assert all(row.source_url.startswith("https://github.com/baichuan-inc/") for row in card.data.eval_results)


@pytest.mark.parametrize("name", PUBLISHED)
def test_licence_is_quoted_and_the_shape_is_that_of_the_preset(name):
    data = load_card(name)
    assert "opensource@baichuan-inc.com" in data["conditions"]["quote"]["en"]
    assert "opensource@baichuan-inc.com" in data["conditions"]["quote"]["zh"]
    config = BaichuanConfig.from_preset(name.lower().removesuffix("-base").removesuffix("-chat"))
    shape = {str(row[0]).strip("`"): row[1] for row in data["sections"][0]["table"]["rows"]}
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert shape[field] == getattr(config, field)


@pytest.mark.parametrize("name", PUBLISHED)
def test_code_of_the_card_runs(name, capsys):
    """With a bundled model of the same kind in place of the large one."""
    code = load_card(name)["usage"]
    small = bundled_checkpoint("tiny-alibi" if "13B" in name else "tiny")
    assert code.count(f"baichuan-inc/{name}") == 1
    exec(code.replace(f"baichuan-inc/{name}", str(small)), {})
    assert capsys.readouterr().out.strip()


def evaluations(name):
    """The parameters of each `baichuan-hf eval` in a card."""
    code = next(section["code"] for section in load_card(name)["sections"] if "code" in section)
    command = typer.main.get_command(app).commands["eval"]
    lines = [line.partition("#")[0].split() for line in code.splitlines() if line.startswith("baichuan-hf eval ")]
    return [command.make_context("eval", words[2:]).params for words in lines]


@pytest.mark.parametrize("name", PUBLISHED)
def test_commands_of_evaluation_are_of_the_published_results(name):
    published = {row["dataset_name"]: row["note"] for row in load_card(name)["results"]}
    of_task = {"ceval-valid": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU", "gsm8k": "GSM8K"}
    asked = {}
    for parameters in evaluations(name):
        assert parameters["model"] == f"baichuan-inc/{name}"
        for task in parameters["task"]:
            asked[of_task[task]] = f"{parameters['num_fewshot']}-shot"
    assert {"C-Eval", "MMLU", "CMMLU"} <= asked.keys()
    for dataset, shots in asked.items():
        assert published[dataset].startswith(shots)


def test_tasks_of_the_cards_are_in_the_harness():
    pytest.importorskip("lm_eval", reason="pip install 'baichuan-hf[eval]'")
    find_tasks({task for name in PUBLISHED for parameters in evaluations(name) for task in parameters["task"]})


@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_card_of_a_bundled_checkpoint_has_our_measurements(name):
    folder = bundled_checkpoint(name)
    for file in CARD_FILES.values():
        assert (folder / file).read_text() == (REPOSITORY / "model_cards" / name / file).read_text()
    measured = json.loads((folder / "evaluation.json").read_text())
    results = {row["dataset_config"]: row["metric_value"] for row in load_card(name)["results"]}
    assert results == {language: round(measured[language]["model"], 3) for language in ("zh", "en")}


def test_languages_say_the_same():
    """All numbers, and the head, are in both."""
    for name in list_cards():
        english, chinese = (render_card(load_card(name), language) for language in CARD_FILES)
        assert english.data.to_dict() == chinese.data.to_dict()
        numbers = [re.findall(r"^\|.*\d.*\|$", card.text, re.MULTILINE) for card in (english, chinese)]
        assert len(numbers[0]) == len(numbers[1]) > 5
        assert not re.search(r"[{}]'|\bNone\b", english.text + chinese.text)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "The card of mine has no licence: give metadata.license"),
        ({"license": "other"}, "has license `other`, so metadata.license_name must say which"),
        ({"license": "other", "license_name": "x"}, "metadata.license_link must say which"),
    ],
)
def test_card_without_licence_is_refused(tmp_path, metadata, message):
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "metadata": metadata, "summary": "A model."}))
    result = run(tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_card_of_ones_own(tmp_path):
    text = {"en": "A model of | pipes and {braces}.", "zh": "一个模型。"}
    data = {"name": "mine", "metadata": {"license": "mit"}, "summary": text}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, allow_unicode=True))
    assert text["en"] in run(tmp_path / "mine.yaml").stdout
    assert "一个模型。\n\n## 许可\n\n权重：mit" in run(tmp_path / "mine.yaml", "--language", "zh").stdout
    result = run(tmp_path / "mine.yaml", "--output-dir", tmp_path / "out")
    assert "README.md and README.zh-CN.md" in result.stdout
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"


@pytest.mark.parametrize("layout", ["baichuan", "remote_code", "llama"])
def test_card_of_a_saved_model(tmp_path, layout):
    save_checkpoint(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    for saved in (AutoModelForCausalLM.from_pretrained(tmp_path / "source"), tokenizer):
        saved.save_pretrained(tmp_path / layout, layout=layout)
    result = run(tmp_path / layout, "--license", "apache-2.0", "--output-dir", tmp_path / layout)
    assert result.exit_code == 0, result.output
    card = ModelCard.load(tmp_path / layout / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-generation")
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    assert ("import baichuan_hf" in code) == (layout == "baichuan")
    assert ("trust_remote_code=True" in code) == (layout == "remote_code")
    exec(code, names := {})
    assert type(names["model"]).__name__ == ("LlamaForCausalLM" if layout == "llama" else "BaichuanForCausalLM")


def test_card_of_an_adapter_names_its_base_and_how_to_load_it(tmp_path):
    save_checkpoint(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4)).save_pretrained(tmp_path / "adapter")
    text = run(tmp_path / "adapter").stdout
    assert "license: mit" in text
    assert f"A PEFT adapter for `{tmp_path}/base`." in text
    assert "| `r` | 4 |" in text
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), names := {})
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"

    file = tmp_path / "adapter" / "adapter_config.json"
    for base in ("baichuan-inc/Baichuan2-7B-Base", "/on/another/machine"):
        values = json.loads(file.read_text()) | {"base_model_name_or_path": base}
        file.write_text(json.dumps(values))
        result = run(tmp_path / "adapter")
        if base.startswith("baichuan-inc"):
            assert "license_name: baichuan2-community-license" in result.stdout
            assert f"base_model: {base}\n" in result.stdout
            assert "The Daily Active Users (DAU)" in result.stdout
            assert "DAU" not in run(tmp_path / "adapter", "--license", "mit").stdout
        else:
            assert "The card of adapter has no licence" in result.stderr


def test_what_is_no_card_is_named(tmp_path):
    assert "nothing: no such file, and no model with a card; those are Baichuan-13B-Base" in run("nothing").stderr
    assert "holds neither card.yaml nor a model or adapter" in run(tmp_path).stderr
    (tmp_path / "card.yaml").write_text("- a list")
    assert "holds no card: it needs the fields `name` and `metadata`" in run(tmp_path).stderr
