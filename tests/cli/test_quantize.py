"""`baichuan-hf quantize`."""

import pytest
from transformers import AutoModelForCausalLM

from baichuan_hf import BaichuanForSequenceClassification
from tests.helpers import tiny_config
from tests.helpers.checkpoint import save_checkpoint


def test_the_command(run, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    source = save_checkpoint(tmp_path / "src", normalize_lm_head=True)
    result = run("quantize", source, tmp_path / "dst", "--method", "int8", "--head")
    assert result.exit_code == 0, result.output
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("BaichuanForCausalLM: 11 layers as int8; ")
    assert second == "NormHead is folded: lm_head is a plain head, whose rows have length 1."
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dst").config.normalize_lm_head is False


def test_texts_are_read(run, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text\nhello\n")
    result = run(
        "quantize", "tiny", tmp_path / "dst", "--method", "gptq", "--text-file", file, "--text-column", "words"
    )
    assert result.exit_code == 1
    assert "--text-column 'words' is not a column; there are 'text'" in result.stderr


def test_unknown_method(run, checkpoint, tmp_path):
    result = run("quantize", checkpoint, tmp_path / "dst", "--method", "int7")
    assert result.exit_code == 1
    assert "method 'int7': unknown; there are int8, int8-dynamic, int4," in result.stderr


def test_a_classifier_is_loaded_by_its_own_class(run, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    BaichuanForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "src")
    result = run("quantize", tmp_path / "src", tmp_path / "dst", "--method", "int8")
    assert result.exit_code == 0, result.output
    assert f'AutoModelForSequenceClassification.from_pretrained("{tmp_path / "dst"}")' in result.stdout
