"""The metrics of `--task classify`, by hand and next to scikit-learn and scipy."""

import numpy as np
import pytest
from transformers import EvalPrediction

from baichuan_hf.training.tasks.label_metrics import classification_metrics, multi_label_metrics, regression_metrics


def test_one_label_worked_by_hand():
    logits = np.eye(3)[[0, 0, 1, 0, 2]]
    metrics = classification_metrics(EvalPrediction(logits, np.array([0, 0, 0, 1, 1])), majority_label=0)
    # class 0: precision 2/3, recall 2/3; class 1: no hit; class 2: predicted only
    assert metrics == pytest.approx({"accuracy": 0.4, "f1_macro": (2 / 3 + 0 + 0) / 3, "majority_accuracy": 0.6})


def test_several_labels_worked_by_hand():
    logits = np.array([[1.0, -1, 2], [1, 1, -1], [-1, -1, -1]])
    labels = np.array([[1.0, 0, 1], [1, 0, 0], [0, 0, 1]])
    metrics = multi_label_metrics(EvalPrediction(logits, labels))
    # hits 3, false 1, missed 1; by label 1, 0 and 2/3
    assert metrics == pytest.approx({"f1_micro": 0.75, "f1_macro": (1 + 0 + 2 / 3) / 3, "subset_accuracy": 1 / 3})


def test_numbers_worked_by_hand():
    metrics = regression_metrics(EvalPrediction(np.array([[1.0], [2], [3]]), np.array([1.0, 3, 2])), training_mean=1.0)
    expected = {"mse": 2 / 3, "mae": 2 / 3, "pearson": 0.5, "spearman": 0.5, "mean_mse": 5 / 3}
    assert metrics == pytest.approx(expected)
    constant = regression_metrics(EvalPrediction(np.ones((3, 1)), np.array([1.0, 3, 2])), training_mean=2.0)
    assert constant["pearson"] == constant["spearman"] == 0.0


def test_labels_are_scored_as_scikit_learn_does():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, logits = generator.integers(0, 5, 30), generator.normal(size=(30, 6))
        metrics = classification_metrics(EvalPrediction(logits, labels), majority_label=0)
        assert metrics["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, logits.argmax(-1)))
        f1 = sklearn_metrics.f1_score(labels, logits.argmax(-1), average="macro")
        assert metrics["f1_macro"] == pytest.approx(f1)
        labels, logits = generator.integers(0, 2, (8, 4)), generator.normal(size=(8, 4)) - 1
        metrics = multi_label_metrics(EvalPrediction(logits, labels.astype(np.float32)))
        for average in ("micro", "macro"):
            f1 = sklearn_metrics.f1_score(labels, logits > 0, average=average, zero_division=0)
            assert metrics[f"f1_{average}"] == pytest.approx(f1)
        assert metrics["subset_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, logits > 0))


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 5, 40).astype(float), generator.integers(0, 7, 40).astype(float)
    metrics = regression_metrics(EvalPrediction(predicted[:, None], labels), training_mean=0.0)
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(predicted, labels)[0])
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(predicted, labels)[0])
