"""`baichuan_hf.benchmarks.smaller`."""

import pytest
from transformers import AutoModelForSequenceClassification

from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.benchmarks.smaller import main
from baichuan_hf.pruning import prune_folder
from baichuan_hf.training import ClassifyArguments, train
from tests.helpers.checkpoint import quiet_arguments, reviews, save_checkpoint, write_csv


def test_rows_of_a_classifier_and_its_half(tmp_path, capsys):
    file = write_csv(tmp_path / "x.csv", reviews(80))
    columns = {"text_column": "review", "label_column": "stars"}
    arguments = ClassifyArguments(
        task="classify", train_file=str(file), model=str(save_checkpoint(tmp_path / "model")), **columns
    )
    metrics = train(arguments, quiet_arguments(tmp_path / "whole", learning_rate=5e-3, num_train_epochs=4))
    prune_folder(str(tmp_path / "whole"), str(tmp_path / "half"), layers=1, sparsity=0.5)
    words = ["--", "--train-file", str(file), "--text-column", "review", "--label-column", "stars"]
    main(str(tmp_path / "rows.csv"), f"whole={tmp_path / 'whole'}", f"half={tmp_path / 'half'}", *words)

    whole, half = read_rows(tmp_path / "rows.csv")
    assert float(whole["accuracy"]) == pytest.approx(metrics["eval_accuracy"])
    assert (whole["rows"], whole["zeros"], half["zeros"]) == ("16", "0.000", "0.500")
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    assert int(half["parameters"]) == small.num_parameters() < int(whole["parameters"])
    assert float(half["megabytes"]) <= float(whole["megabytes"])
    assert float(whole["times_faster"]) == 1.0
