"""Decoding, prefill and attention in turns with what they are held against."""

import pytest
import torch

from baichuan_hf.benchmarks import attention, inference
from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.model.modeling_baichuan import BaichuanModel


CPU = torch.device("cpu")


def test_every_model_writes_and_reads(tmp_path):
    path, lines = tmp_path / "inference.csv", []
    options = {"shape": "tiny", "rounds": 1, "device": CPU, "command": "bench", "report": lines.append}
    inference.measure_decoding(path, ways=["dynamic", "graph"], prompt_tokens=5, new_tokens=3, batch_size=2, **options)
    inference.measure_decoding(path, ways=["new-lengths"], models=["baichuan"], new_tokens=3, batch_size=2, **options)
    profile = tmp_path / "profile.txt"
    inference.measure_prefill(path, tokens=33, models=["baichuan", "baichuan, ALiBi"], profile=profile, **options)
    assert profile.read_text().count("aten::addmm") + profile.read_text().count("aten::mm") >= 2
    found = {(row["case"], row["way"], row["model"]): row for row in read_rows(path)}
    assert list(found) == [
        ("decode", "dynamic", "llama"),
        ("decode", "dynamic", "baichuan"),
        ("decode", "dynamic", "baichuan, ALiBi"),
        ("decode", "graph", "baichuan"),
        ("decode", "graph", "baichuan, ALiBi"),
        ("decode", "new-lengths", "baichuan"),
        ("prefill", "", "baichuan"),
        ("prefill", "", "baichuan, ALiBi"),
    ]
    inference.measure_prefill(path, tokens=33, models=["baichuan"], **options)  # which is there
    assert inference.inference_table(path).row_count == len(lines) == len(found)
    assert float(found["decode", "dynamic", "baichuan"]["difference"]) < 1e-4
    assert float(found["decode", "dynamic", "llama"]["speed"]) == 1
    assert float(found["prefill", "", "baichuan"]["speed"]) == 1
    for row in found.values():
        assert 0 < float(row["share_of_ceiling"]) < 1
        per_second = 2 * 1000 / float(row["ms"]) if row["case"] == "decode" else 33 * 1000 / float(row["ms"])
        assert float(row["tokens_per_second"]) == pytest.approx(per_second, rel=0.02)
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'baichuan-hf[bench]'")
    inference.draw_inference(path, tmp_path / "inference.png")
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")


def test_no_length_comes_twice(tmp_path, monkeypatch):
    lengths = []
    forward = BaichuanModel.forward

    def recorded(self, *args, past_key_values=None, **kwargs):
        outputs = forward(self, *args, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None:
            lengths.append(past_key_values.get_seq_length())
        return outputs

    monkeypatch.setattr(BaichuanModel, "forward", recorded)
    options = {"shape": "tiny", "models": ["baichuan", "baichuan, ALiBi"], "rounds": 2, "device": CPU}
    inference.measure_decoding(tmp_path / "rows.csv", ways=["new-lengths"], prompt_tokens=5, new_tokens=3, **options)
    assert lengths == list(range(5, 5 + 2 * 4 * 3))


def test_unknown_models_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"--model 'gpt': unknown; there are llama, baichuan"):
        inference.measure_prefill(tmp_path / "rows.csv", shape="tiny", models=["gpt"], device=CPU)


@pytest.mark.parametrize("length", [33, 130])
def test_forms_of_alibi_agree(tmp_path, length):
    path = tmp_path / "attention.csv"
    attention.measure_attention(
        path, lengths=[length], heads=5, head_dim=16, rounds=1, device=CPU, report=lambda line: None
    )
    rows = read_rows(path)
    forms = [attention.FLOOR, "bias in a mask", "head dimensions"]
    assert [(row["direction"], row["form"]) for row in rows] == [
        (direction, form) for direction in ("forward", "forward and backward") for form in forms
    ]
    assert attention.attention_table(path).row_count == 6
    for row in rows:
        if row["form"] != attention.FLOOR:
            assert float(row["difference"]) < 1e-4


def test_a_mask_beyond_all_memory_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "MAX_BIAS", 5 * 32**2)
    path = tmp_path / "attention.csv"
    attention.measure_attention(
        path, lengths=[32, 33], heads=5, head_dim=16, rounds=1, device=CPU, report=lambda line: None
    )
    tried = {(row["tokens"], row["form"]) for row in read_rows(path)}
    assert ("32", "bias in a mask") in tried
    assert ("33", "bias in a mask") not in tried
