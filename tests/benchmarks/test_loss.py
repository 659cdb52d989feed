"""`bench loss`: every way does the same work, and is measured."""

import csv

import pytest
import torch

from baichuan_hf.benchmarks.loss import _chunked, _inputs, _step, _whole, loss_table, measure_loss


def test_both_ways_give_the_same_gradients():
    for normalized in (False, True):
        head, states, labels = _inputs(normalized, 40, 16, 64, torch.device("cpu"))
        _step(_whole, head, states, labels)
        expected = head.weight.grad.clone(), states.grad.clone()
        _step(_chunked, head, states, labels)
        torch.testing.assert_close((head.weight.grad, states.grad), expected)


@pytest.mark.slow  # four processes, each of which imports the package
def test_rows(tmp_path):
    rows = tmp_path / "loss.csv"
    measure_loss(rows, tokens=512, hidden_size=16, vocab_size=40000, rounds=2, device=torch.device("cpu"))
    with rows.open() as file:
        found = {(row["head"], row["loss"]): row for row in csv.DictReader(file)}
    ways = ("whole logits", "in chunks")
    assert list(found) == [(head, way) for head in ("linear", "NormHead") for way in ways]
    assert all(float(row["ms"]) > 0 for row in found.values())
    # 78 MiB of logits in float32, with their softmax; the chunks hold all 512 tokens too, but each but once.
    assert int(found["linear", "whole logits"]["peak_mib"]) > 100
    assert loss_table(rows).row_count == 4
