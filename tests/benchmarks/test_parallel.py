"""`baichuan-hf bench parallel` on two CPU processes."""

import csv

import pytest
import torch

from baichuan_hf.benchmarks.parallel import measure_parallel


SMALL = {"shape": "tiny", "batch_size": 4, "length": 16, "steps": 5, "device": torch.device("cpu")}


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    rows = tmp_path / "rows.csv"
    assert measure_parallel(rows, ways=["ddp"], report=lambda line: None, **SMALL) == []
    one, two = csv.DictReader(rows.open(encoding="utf-8"))
    assert [(row["way"], row["processes"]) for row in (one, two)] == [("one", "1"), ("ddp", "2")]
    assert float(two["loss_difference"]) < 1e-4
    assert float(two["last_loss"]) < float(two["first_loss"])
    assert float(one["tokens_per_second"]) == pytest.approx(1000 * 4 * 16 / float(one["ms"]), rel=1e-3)


@pytest.mark.slow
def test_a_way_that_fails_is_told_and_the_others_go_on(tmp_path):
    # accelerate makes no mesh of CPUs.
    failed = measure_parallel(tmp_path / "rows.csv", ways=["tp", "ddp"], report=lambda line: None, **SMALL)
    assert [reason.partition(":")[0] for reason in failed] == ["tp"]
    assert "MULTI_CPU" in failed[0]
    assert [row["way"] for row in csv.DictReader((tmp_path / "rows.csv").open(encoding="utf-8"))] == ["one", "ddp"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"ways": ["dpp"]}, "--way 'dpp': unknown; there are ddp", id="way"),
        pytest.param({"shape": "7b"}, "--shape '7b': unknown; there are tiny, 1b", id="shape"),
        pytest.param({"batch_size": 3}, "--batch-size 3 is no multiple of --processes 2", id="rows"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        measure_parallel(tmp_path / "rows.csv", **(SMALL | options))
