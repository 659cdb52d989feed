"""Models on the CPU in turns with those that they were copied from."""

import pytest
import torch

from baichuan_hf.benchmarks import cpu
from baichuan_hf.benchmarks.rows import read_rows


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(cpu.SHAPES, "tiny", SMALL)


def test_every_peer_and_pass_has_two_rows(tmp_path, small):
    rows, lines = tmp_path / "cpu.csv", []
    cpu.measure_cpu(rows, shape="tiny", rounds=2, command="bench", report=lines.append)
    found = [(row["peer"], row["pass"], row["model"]) for row in read_rows(rows)]
    passes = ("forward", "generate", "training")
    assert found == [(peer, phase, model) for peer in cpu.PEERS for phase in passes for model in (peer, "baichuan-hf")]
    assert cpu.cpu_table(rows).row_count == len(lines) == len(found)
    for row in read_rows(rows):
        assert float(row["ms"]) > 0
        assert float(row["speed"]) == 1 if row["model"] == row["peer"] else float(row["speed"]) > 0
        assert (row["shape"], row["command"]) == ("tiny", "bench")


def test_models_that_compute_something_else_are_no_peers(tmp_path, small, monkeypatch):
    def mend(model, copy=cpu.from_transformers):
        changed = copy(model)
        with torch.no_grad():
            changed.lm_head.weight[7] += 0.1
        return changed

    monkeypatch.setattr(cpu, "from_transformers", mend)
    with pytest.raises(ValueError, match="do not compute the same: a logit differs by"):
        cpu.measure_cpu(tmp_path / "x.csv", peers=["llama"], shape="tiny", rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": ["gpt3"]}, "--peer 'gpt3': unknown; there are llama, bloom, mpt"),
        ({"shape": "70b"}, "--shape '70b': unknown; there are tiny, 100m"),
    ],
)
def test_what_there_is_not_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cpu.measure_cpu(tmp_path / "x.csv", **options)
