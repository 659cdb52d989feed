"""What an evaluation of `--task classify` measures, for each kind of label.

Shape legend: N texts, L labels.
"""

import functools
from collections import Counter
from collections.abc import Callable

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from .classify_arguments import MULTI, SINGLE
from .labelled_texts import problem_type


def metrics_of(rows: Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
    """What measures a classifier of the labels of the training rows `rows`."""
    kind = problem_type(rows)
    if kind == MULTI:
        return multi_label_metrics
    if kind == SINGLE:
        return functools.partial(classification_metrics, majority_label=Counter(rows["label"]).most_common(1)[0][0])
    return functools.partial(regression_metrics, training_mean=float(np.mean(rows["label"])))


def classification_metrics(prediction: EvalPrediction, *, majority_label: int) -> dict[str, float]:
    """Accuracy, and F1 averaged over the classes that occur in labels or predictions, as scikit-learn does.

    Labels (N,), predictions (N, L).
    """
    labels = prediction.label_ids
    predicted = np.asarray(prediction.predictions).argmax(-1)
    f1 = [_f1(predicted == name, labels == name) for name in np.union1d(labels, predicted)]
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "f1_macro": float(np.mean(f1)),
        "majority_accuracy": float(np.mean(labels == majority_label)),
    }


def multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """F1 over all decisions and averaged over the labels, and the share of texts with all labels right.

    A label is given where its logit is above 0. Labels and predictions (N, L). As scikit-learn, a label that neither
    occurs nor is predicted has an F1 of 0.
    """
    labels = np.asarray(prediction.label_ids) > 0.5
    predicted = np.asarray(prediction.predictions) > 0
    return {
        "f1_micro": _f1(predicted, labels),
        "f1_macro": float(np.mean([_f1(*columns) for columns in zip(predicted.T, labels.T, strict=True)])),
        "subset_accuracy": float(np.mean((predicted == labels).all(-1))),
    }


def regression_metrics(prediction: EvalPrediction, *, training_mean: float) -> dict[str, float]:
    """Squared and absolute error, and the correlations of Pearson and Spearman, 0 where one side is constant.

    `mean_mse`, to compare with, is the squared error of always giving `training_mean`. Labels (N,), predictions
    (N, 1).
    """
    labels = np.asarray(prediction.label_ids, dtype=np.float64).reshape(-1)
    predicted = np.asarray(prediction.predictions, dtype=np.float64).reshape(-1)
    return {
        "mse": float(np.mean((predicted - labels) ** 2)),
        "mae": float(np.mean(np.abs(predicted - labels))),
        "pearson": _correlation(predicted, labels),
        "spearman": _correlation(_ranks(predicted), _ranks(labels)),
        "mean_mse": float(np.mean((labels - training_mean) ** 2)),
    }


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * np.sum(predicted & labels) / max(np.sum(predicted) + np.sum(labels), 1))


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[group]
