"""Time and memory by length, and the ratio between two versions."""

import shutil

import pytest
import torch

from baichuan_hf.benchmarks import ratio, scaling
from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.benchmarks.timing import interleaved, milliseconds
from tests.helpers import REPOSITORY


CPU = torch.device("cpu")


def test_every_kind_length_and_pass_is_measured_once(tmp_path):
    rows = tmp_path / "scaling.csv"
    scaling.measure_scaling(rows, lengths=[32], rounds=1, device=CPU, report=lambda _: None)
    scaling.measure_scaling(rows, lengths=[32, 64], kinds=["Performer"], rounds=1, device=CPU, report=lambda _: None)
    found = [(row["attention"], row["tokens"], row["pass"]) for row in read_rows(rows)]
    first = [(kind, "32", phase) for phase in ("forward", "training") for kind in scaling.KINDS]
    assert found == [*first, ("Performer", "64", "forward"), ("Performer", "64", "training")]
    assert all(float(row["ms"]) > 0 for row in read_rows(rows))


def test_the_lengths_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'baichuan-hf[bench]'")
    rows = tmp_path / "scaling.csv"
    scaling.measure_scaling(rows, lengths=[32], kinds=["Linformer"], rounds=1, device=CPU, report=lambda _: None)
    scaling.draw_scaling(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", scaling.KINDS)
def test_every_kind_is_what_it_is_called(kind):
    attention = scaling._build(kind, 64, CPU).layers[0].self_attn
    names = {"Longformer": "WindowedAttention", "Linformer": "LinformerAttention", "Performer": "PerformerAttention"}
    assert type(attention).__name__ == names.get(kind, "BaichuanAttention")
    assert attention.config._attn_implementation == ("eager" if kind == "full, eager" else "sdpa")


def test_unknown_kind_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="--kind 'reformer': unknown; there are full, eager, full, sdpa, Longformer"):
        scaling.measure_scaling(tmp_path / "x.csv", kinds=["reformer"], device=CPU)


def test_actions_take_turns_and_the_first_round_does_not_count():
    calls = []
    actions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(actions, CPU, rounds=2, repeats=2)
    assert "".join(calls) == "aabb" * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_milliseconds_are_median_and_spread():
    assert milliseconds([0.003, 0.001, 0.002]) == {"ms": "2.000", "ms_p20": "1.400", "ms_p80": "2.600"}
    assert milliseconds([0.001]) == {"ms": "1.000", "ms_p20": "1.000", "ms_p80": "1.000"}


@pytest.mark.slow
def test_two_versions_run_in_turns_each_with_its_own_code(tmp_path, monkeypatch):
    """The other version is this one with a delay in its forward pass."""
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", "reviews")
    shutil.copytree(REPOSITORY / "baichuan_hf", tmp_path / "baichuan_hf", ignore=ignore)
    delay = "import time\nfrom transformers import PreTrainedModel\n"
    delay += "_call = PreTrainedModel.__call__\n"
    delay += "def _slow(self, *args, **kwargs):\n    time.sleep(0.05)\n    return _call(self, *args, **kwargs)\n"
    delay += "PreTrainedModel.__call__ = _slow\n"
    with open(tmp_path / "baichuan_hf" / "__init__.py", "a") as file:
        file.write(delay)
    monkeypatch.setitem(ratio.SHAPES, "tiny", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2})
    monkeypatch.setattr(ratio, "READ", 8)
    monkeypatch.setattr(ratio, "WRITTEN", 2)
    rows = tmp_path / "ratio.csv"
    ratio.measure_ratio(rows, tmp_path, rounds=3, device=CPU, label="slow", report=lambda _: None)
    found = read_rows(rows)
    assert [(row["family"], row["pass"]) for row in found] == [
        (family, phase) for family in ("rope", "alibi") for phase in ("forward", "training", "decode")
    ]
    for row in found:
        assert float(row["ms_before"]) > 50
        assert float(row["ratio"]) < 1


def test_a_folder_without_the_package_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no folder baichuan_hf with the package"):
        ratio.measure_ratio(tmp_path / "x.csv", tmp_path, device=CPU, label="none")
