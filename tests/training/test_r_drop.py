"""`--r-drop-alpha`: the loss of two passes, and what it is for."""

import pytest
import torch
from torch.nn import functional as F

import baichuan_hf
from baichuan_hf.training import ClassifyArguments, train
from baichuan_hf.training.tasks.r_drop import RDropTrainer
from tests.helpers import tiny_config
from tests.helpers.checkpoint import quiet_arguments


def arguments(reviews_csv, checkpoint, **values):
    return ClassifyArguments(
        task="classify",
        train_file=str(reviews_csv),
        model=str(checkpoint),
        text_column="review",
        label_column="stars",
        max_length=16,
        **values,
    )


def test_loss_is_that_of_both_passes_and_their_divergence(tmp_path):
    torch.manual_seed(0)
    model = baichuan_hf.BaichuanForSequenceClassification(
        tiny_config(hidden_dropout=0.3, num_labels=3, initializer_range=0.3)
    )
    inputs = {"input_ids": torch.randint(3, 128, (4, 6)), "labels": torch.tensor([0, 2, 1, 1])}
    trainer = RDropTrainer(model=model, args=quiet_arguments(tmp_path), alpha=0.7)
    model.train()
    torch.manual_seed(1)
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    first, second = outputs.logits[:4].softmax(-1), outputs.logits[4:].softmax(-1)
    assert (first - second).abs().max() > 1e-3  # different dropout
    labels = inputs["labels"]
    errors = F.cross_entropy(outputs.logits, torch.cat([labels, labels]))
    divergence = ((first - second) * (first / second).log()).sum() / 4
    torch.testing.assert_close(loss, errors + 0.7 * divergence / 2)
    model.eval()
    torch.testing.assert_close(
        trainer.compute_loss(model, inputs), F.cross_entropy(model(inputs["input_ids"]).logits, labels)
    )


def test_a_classifier_learns_with_it(checkpoint, reviews_csv, tmp_path):
    values = {"r_drop_alpha": 1.0, "config_overrides": "hidden_dropout=0.1"}
    training = quiet_arguments(
        tmp_path, num_train_epochs=4, per_device_train_batch_size=4, learning_rate=5e-3, label_smoothing_factor=0.1
    )
    assert train(arguments(reviews_csv, checkpoint, **values), training)["eval_accuracy"] == 1.0


def test_what_it_does_not_go_with_is_refused(checkpoint, reviews_csv, tmp_path):
    with pytest.raises(ValueError, match="--r-drop-alpha is -1"):
        arguments(reviews_csv, checkpoint, r_drop_alpha=-1.0)
    several = arguments(reviews_csv, checkpoint, r_drop_alpha=1.0, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="--r-drop-alpha.* one label .* multi_label"):
        train(several, quiet_arguments(tmp_path))
    with pytest.raises(ValueError, match="--r-drop-alpha .*--few-shot"):
        arguments(reviews_csv, checkpoint, r_drop_alpha=1.0, few_shot=4)
