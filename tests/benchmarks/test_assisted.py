"""Assisted decoding: the same tokens in fewer forward passes, on a text that repeats itself."""

import pytest
import torch

from baichuan_hf.benchmarks import assisted
from baichuan_hf.benchmarks.choices import SHAPES
from baichuan_hf.benchmarks.random_models import random_config
from baichuan_hf.benchmarks.rows import read_rows


CPU = torch.device("cpu")
SIZES = {"prompt_tokens": 100, "new_tokens": 45}


@pytest.mark.parametrize("normalised", [False, True], ids=["plain head", "NormHead"])
@pytest.mark.parametrize("alibi", [False, True], ids=["RoPE", "ALiBi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_text_repeats_itself_by_a_margin_that_rounding_does_not_reach(dtype, alibi, normalised):
    config = random_config(SHAPES["tiny"], length=256, alibi=alibi)
    config.normalize_lm_head = normalised
    model = assisted.repeating_model(config, dtype=dtype, device=CPU)
    text = assisted.repeating_text(140, CPU)
    assert text[0, :50].unique().numel() == 50
    assert torch.equal(text[:, 50:], text[:, :-50])
    with torch.no_grad():
        logits = model(text).logits[0].float()
    assert torch.equal(logits[:-1].argmax(-1), text[0, 1:])
    first, second = logits.topk(2).values.unbind(-1)
    assert ((first - second) / first > 0.2).all()


def test_assisted_decoding_needs_fewer_passes_for_the_same_tokens(tmp_path, monkeypatch):
    path, lines = tmp_path / "assisted.csv", []
    options = {"shape": "tiny", "rounds": 1, "device": CPU, "command": "bench", "report": lines.append}
    assisted.measure_assisted(path, models=assisted.MODELS, **SIZES, **options)
    rows = read_rows(path)
    assert [(row["model"], row["way"]) for row in rows] == [
        (model, way) for model in assisted.MODELS for way in ("plain", "lookup", "assistant")
    ]
    passes = {"plain": 45, "lookup": 5, "assistant": 3}  # of 10 tokens and 20 that are drafted, and one more
    for row in rows:
        assert row["different_tokens"] == "0"
        assert float(row["tokens_per_pass"]) == pytest.approx(45 / passes[row["way"]], abs=0.01)
        assert float(row["tokens_per_second"]) == pytest.approx(1000 / float(row["ms"]), rel=0.02)
    assert len(lines) == assisted.assisted_table(path).row_count == 9

    def build(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(assisted, "repeating_model", build)
    assisted.measure_assisted(path, models=["baichuan"], **SIZES, **options)
    with pytest.raises(AssertionError, match="measured again"):
        assisted.measure_assisted(path, models=["baichuan"], **(SIZES | {"new_tokens": 44}), **options)


def test_tokens_that_differ_are_counted(tmp_path, monkeypatch):
    """A way that is not greedy decoding, in the place of lookup."""
    monkeypatch.setitem(assisted.WAYS, "lookup", {"suppress_tokens": [assisted.FIRST + 7]})
    path = tmp_path / "assisted.csv"
    assisted.measure_assisted(
        path, shape="tiny", models=["baichuan"], rounds=1, device=CPU, report=lambda line: None, **SIZES
    )
    found = {row["way"]: int(row["different_tokens"]) for row in read_rows(path)}
    assert found["plain"] == found["assistant"] == 0
    assert found["lookup"] > 0


def test_a_text_of_one_period_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--prompt-tokens 99: must be 100 or more"):
        assisted.measure_assisted(tmp_path / "rows.csv", shape="tiny", prompt_tokens=99, device=CPU)
