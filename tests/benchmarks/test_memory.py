"""Loading, and memory and time as the text grows."""

import pytest
import torch

from baichuan_hf.benchmarks import loading, memory
from baichuan_hf.benchmarks.rows import read_rows


CPU = torch.device("cpu")


def test_every_model_is_loaded_and_writes_a_token(tmp_path):
    rows, lines = tmp_path / "load.csv", []
    loading.measure_loading(rows, shape="tiny", rounds=2, device=CPU, command="bench", report=lines.append)
    found = {row["model"]: row for row in read_rows(rows)}
    assert list(found) == ["llama", "baichuan", "baichuan, ALiBi"]
    assert loading.loading_table(rows).row_count == len(lines) == 3
    assert float(found["llama"]["speed"]) == float(found["llama"]["first_token_speed"]) == 1
    for row in found.values():
        assert float(row["ms"]) > 0
        assert float(row["first_token_ms"]) > 0
        assert row["gigabytes"] == "0.0003"  # 166 thousand weights of two bytes


def test_every_length_is_measured_once_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "in_a_process", lambda measure: measure())
    path = tmp_path / "memory.csv"
    options = {"shape": "tiny", "rounds": 1, "device": CPU, "report": lambda _: None}
    memory.measure_memory(path, lengths=[32], passes=["prefill"], **options)
    memory.measure_memory(path, lengths=[64, 32], **options)
    found = [(row["positions"], row["pass"], row["tokens"]) for row in read_rows(path)]
    keys = [(kind, phase, tokens) for kind in memory.POSITIONS for phase in memory.PASSES for tokens in ("32", "64")]
    assert sorted(found) == sorted(keys)
    assert all(float(row["ms"]) > 0 for row in read_rows(path))
    assert memory.memory_table(path).row_count == len(keys)
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'baichuan-hf[bench]'")
    memory.draw_memory(path, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # a process for each row
def test_the_memory_of_a_cache_is_seen(tmp_path):
    path = tmp_path / "memory.csv"
    options = {"positions": ["rope"], "passes": ["decode"], "rounds": 1, "device": CPU, "report": lambda _: None}
    memory.measure_memory(path, shape="tiny", lengths=[1024, 65536], **options)
    short, long = (int(row["peak_mib"]) for row in read_rows(path))
    # Keys and values of two layers, 64 float32 wide: 64 MiB, and half as much again while they are copied.
    assert 64 < long - short < 160


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "70b"}, "--shape '70b': unknown; there are tiny, 1b, 7b, 13b"),
        ({"positions": ["learned"]}, "--positions 'learned': unknown; there are rope, alibi"),
        ({"passes": ["chat"]}, "--case 'chat': unknown; there are prefill, decode, training"),
    ],
)
def test_what_there_is_not_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        memory.measure_memory(tmp_path / "x.csv", device=CPU, **options)
