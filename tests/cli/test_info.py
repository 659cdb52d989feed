"""`baichuan-hf info`."""

import json
import re

import pytest
import torch

from baichuan_hf import BaichuanConfig, list_presets
from baichuan_hf.evaluation import measure
from tests.helpers import REPOSITORY


README_BLOCK = r"^```\nbaichuan-hf (info [^\n]*)\n```\n\n```text\n(.*?)^```"


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset(run, preset):
    result = run("info", preset)
    assert result.exit_code == 0, result.output
    total = measure(BaichuanConfig.from_preset(preset))["parameters"]["total"]
    assert re.search(rf"total +{total:,} +100.0%", result.stdout)


def test_json_is_what_measure_gives(run):
    words = ["--batch-size", 4, "--length", 512, "--dtype", "float32", "--lora-r", 8, "--json"]
    result = run("info", "mistral-7b", *words)
    size = measure(BaichuanConfig.from_preset("mistral-7b"), batch_size=4, length=512, dtype=torch.float32, lora_r=8)
    assert json.loads(result.stdout) == {"model": "mistral-7b", **size}


def test_folder(run, checkpoint):
    result = run("info", checkpoint, "--json")
    size = measure(BaichuanConfig.from_pretrained(checkpoint))
    assert json.loads(result.stdout) == {"model": str(checkpoint), **size}
    assert size["class"] == "BaichuanForCausalLM"


def test_folder_of_a_classifier(run, checkpoint, tmp_path):
    config = BaichuanConfig.from_pretrained(checkpoint, architectures=["BaichuanForSequenceClassification"])
    config.save_pretrained(tmp_path)
    size = json.loads(run("info", tmp_path, "--json").stdout)
    assert (size["class"], size["parameters"]["head"]) == (config.architectures[0], 2 * config.hidden_size)


def test_unknown_preset_names_the_nearest(run):
    result = run("info", "llama2-7b")
    assert result.exit_code == 1
    assert "no preset 'llama2-7b' (did you mean 'llama-2-7b'?)" in result.stderr
    assert "folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_other_models_are_refused(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    result = run("info", tmp_path)
    assert result.exit_code == 1
    assert "model_type is 'llama'" in result.stderr


@pytest.mark.parametrize("readme", sorted(REPOSITORY.glob("README*.md")), ids=lambda file: file.name)
def test_readme_shows_the_real_output(run, monkeypatch, readme):
    monkeypatch.setenv("COLUMNS", "110")
    blocks = re.findall(README_BLOCK, readme.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for command, shown in blocks:
        printed = run(*command.split()).stdout
        assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()
