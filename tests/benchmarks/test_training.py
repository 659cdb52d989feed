"""Training steps in turns: what is compared, what is written, and that one failure does not stop the others."""

from importlib.util import find_spec
from typing import ClassVar

import pytest
import torch

from baichuan_hf.benchmarks import training
from baichuan_hf.benchmarks.ceilings import copy_ceiling, matrix_ceiling
from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.benchmarks.training import CASES, measure_training, training_table


CPU = torch.device("cpu")


@pytest.mark.slow
def test_models_take_turns_and_a_failure_does_not_stop_the_others(tmp_path):
    path, lines = tmp_path / "rows.csv", []
    failed = measure_training(
        path,
        cases=["full"],
        shape="tiny",
        batch_size=2,
        length=16,
        rounds=2,
        at_once=2,
        device=CPU,
        command="bench",
        report=lines.append,
    )
    rows = {row["variant"]: row for row in read_rows(path)}
    assert {"Llama", "Baichuan"} <= rows.keys()
    assert len(rows) + len(failed) == len(CASES["full"].variants)
    assert len(lines) == training_table(path).row_count == len(rows)
    if find_spec("liger_kernel") is None:
        assert any("full, Llama, Liger" in line and "liger-kernel" in line for line in failed)
        assert float(rows["Llama"]["speed"]) == 1
    for row in rows.values():
        assert float(row["speed"]) > 0
        assert int(row["tokens_per_second"]) == pytest.approx(2 * 16 * 1000 / float(row["ms"]), rel=0.01)
        assert 0 < float(row["share_of_ceiling"]) < 1
        assert 5 < float(row["loss"]) < 7  # 512 words, random weights
        assert (row["shape"], row["command"]) == ("tiny", "bench")


class Crowded:
    """Trainees in a memory of three, in which compiling takes two and ALiBi three; who steps first runs out."""

    sizes: ClassVar[dict["Crowded", int]] = {}

    def __init__(self, case, variant, device):
        self.sizes[self] = 3 if variant.alibi else 2 if variant.compiled else 1

    def step(self):
        if sum(self.sizes.values()) > 3:
            self.close()
            raise RuntimeError("CUDA out of memory.")
        return {"seconds": 0.5, "loss": 6.0, "peak_gib": 1.0}

    def close(self):
        self.sizes.pop(self, None)


def test_a_peer_that_runs_out_of_memory_is_tried_with_fewer_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Trainee", Crowded)
    path, lines = tmp_path / "rows.csv", []
    failed = measure_training(path, cases=["full"], shape="tiny", rounds=2, at_once=3, device=CPU, report=lines.append)
    measured = [row["variant"] for row in read_rows(path)]
    assert measured == ["Llama, Liger", "Llama", "Baichuan", "Baichuan, compiled"]
    assert failed == ["full, Baichuan, compiled, ALiBi: its peer, Llama, Liger, failed beside it: CUDA out of memory."]
    assert any(line.startswith("full: Llama, Liger; ") and "now 2 at once: CUDA out of" in line for line in lines)
    assert training_table(path).row_count == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": ["lorra"]}, r"--case 'lorra': unknown; there are lora, qlora, full"),
        ({"shape": "70b"}, r"--shape '70b': unknown; there are tiny, 1b, 7b"),
        ({"at_once": 1}, r"--at-once 1: must be 2 or more"),
    ],
)
def test_what_there_is_not_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        measure_training(tmp_path / "rows.csv", device=CPU, **options)


def test_the_ceiling_is_that_of_the_machine():
    assert 1e8 < matrix_ceiling(CPU, size=256) < 1e14
    assert 1e7 < copy_ceiling(CPU, size=2**20) < 1e13
