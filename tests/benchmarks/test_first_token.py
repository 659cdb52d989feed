"""`baichuan-hf bench start`: processes that write their first tokens."""

import pytest
import torch

from baichuan_hf.benchmarks.first_token import measure_start, start_table
from baichuan_hf.benchmarks.rows import read_rows


CPU = torch.device("cpu")


@pytest.mark.slow
def test_what_compiles_starts_twice(tmp_path):
    path, lines = tmp_path / "start.csv", []
    options = {"shape": "tiny", "device": CPU, "report": lines.append}
    measure_start(path, models=["llama"], ways=["dynamic", "graph"], **options)
    measure_start(path, models=["baichuan"], ways=["dynamic", "compiled"], **options)
    measure_start(path, models=["llama", "baichuan"], ways=["dynamic"], **options)  # which are there
    found = read_rows(path)
    assert [(row["model"], row["way"], row["compile_cache"]) for row in found] == [
        ("llama", "dynamic", ""),
        ("baichuan", "dynamic", ""),
        ("baichuan", "compiled", "cold"),
        ("baichuan", "compiled", "warm"),
    ]
    assert start_table(path).row_count == len(lines) == len(found)
    for row in found:
        seconds = [float(row[f"token_{number}_seconds"]) for number in (1, 2, 3, 32)]
        assert seconds == sorted(seconds)
        assert seconds[-1] > 0


def test_unknown_ways_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"--way 'eager': unknown; there are dynamic, graph, compiled"):
        measure_start(tmp_path / "rows.csv", shape="tiny", ways=["eager"], device=CPU)
