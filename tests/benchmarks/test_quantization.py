"""`baichuan-hf bench quantization`."""

import csv

import pytest
import torch

from baichuan_hf.benchmarks.quantization import measure_quantization
from tests.helpers.checkpoint import save_checkpoint


CPU = torch.device("cpu")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_before_and_after(tmp_path):
    pytest.importorskip("torchao", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    folder = save_checkpoint(tmp_path / "model", normalize_lm_head=True)
    lines = []
    measure_quantization(
        tmp_path / "rows.csv",
        model=str(folder),
        methods=["int8", "gptq"],
        head=True,
        rounds=2,
        device=CPU,
        report=lines.append,
    )
    before, layers, both = read(tmp_path / "rows.csv")
    assert [(row["method"], row["head"]) for row in (before, layers, both)] == [
        ("none", "0"),
        ("int8", "0"),
        ("int8", "1"),
    ]
    sizes = [float(row["megabytes"]) for row in (before, layers, both)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert float(both["bits_per_byte"]) == pytest.approx(float(before["bits_per_byte"]), rel=0.01)
    assert before["times_writing"] == before["times_reading"] == "1.00"
    assert layers["library"].startswith("torchao ")
    assert any(line.startswith("gptq: not measured: ") for line in lines)


def test_a_shape_has_no_quality(tmp_path):
    pytest.importorskip("torchao", reason="needs torchao: pip install 'baichuan-hf[torchao]'")
    options = {"new_tokens": 3, "rounds": 1, "device": CPU, "report": len}
    measure_quantization(tmp_path / "rows.csv", shape="tiny", methods=["int8"], **options)
    rows = read(tmp_path / "rows.csv")
    assert [row["method"] for row in rows] == ["none", "int8"]
    assert {row["bits_per_byte"] for row in rows} == {""}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Give either --model or --shape"),
        ({"model": "tiny", "shape": "7b"}, "Give either --model or --shape"),
        ({"shape": "9b"}, "--shape '9b': unknown"),
        ({"model": "tiny", "methods": ["int3"]}, "--method 'int3': unknown; there are int8,"),
    ],
)
def test_wrong_choices(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        measure_quantization(tmp_path / "rows.csv", **{"methods": ["int8"], "device": CPU} | settings)
