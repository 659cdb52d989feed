"""`--task classify`: one label for each text, several, or a number."""

import functools
from collections.abc import Callable

from datasets import Dataset, DatasetDict
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from ...data.augmentation import Augmentation, load_augmentation
from ..trainer import OrderedTrainer, add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save
from .classify_arguments import MULTI, SINGLE, ClassifyArguments
from .few_shot import prompt_recipe
from .label_metrics import metrics_of
from .labelled_texts import choose_examples, label_names, load_labelled_texts, problem_type
from .pseudo_labels import add_pseudo_labels
from .r_drop import RDropTrainer
from .recipes import Batch, Recipe, longest_input


def train_classifier(
    arguments: ClassifyArguments, training_arguments: TrainingArguments, *, augment: Augmentation | None = None
) -> dict[str, float]:
    """Fine-tune a sequence classifier, or with --few-shot a language model that is asked.

    Labels are discovered in the training rows and stored in `config.id2label`, with `config.problem_type`. `augment`
    changes the training texts anew in each epoch, after those of --augment. Returns the metrics that all_results.json
    holds: `eval_loss` and those of `label_metrics`, for one label `eval_accuracy`, `eval_f1_macro` and, to compare
    with, `eval_majority_accuracy`, what always giving the most frequent training label scores. Raises ValueError or
    FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    rows = load_labelled_texts(arguments)
    if arguments.few_shot:
        rows["train"] = choose_examples(rows["train"], arguments.few_shot, seed=training_arguments.seed)
    steps: list[str | Augmentation] = [*(arguments.augment or []), *([augment] if augment else [])]
    augmentation = load_augmentation(steps) if steps else None
    make_recipe = _head_recipe if arguments.few_shot is None else prompt_recipe
    recipe = make_recipe(arguments, training_arguments, rows)
    test_rows = recipe.encode_rows(rows["test"], arguments.sources["test"]) if "test" in rows else None
    if arguments.few_shot == 0:
        return _evaluate(recipe, test_rows, training_arguments)
    train_rows = rows["train"]
    if arguments.unlabeled_file:
        train_rows = add_pseudo_labels(rows, test_rows, recipe, arguments, training_arguments, augmentation)
    seed = training_arguments.seed
    encoded = recipe.training_rows(train_rows, arguments.train_file, augment=augmentation, seed=seed)
    trainer = recipe.build(encoded, test_rows, training_arguments)
    return train_and_save(trainer, arguments, recipe.load, pipeline_tag=recipe.pipeline_tag)


def _evaluate(recipe: Recipe, rows: Dataset | None, training_arguments: TrainingArguments) -> dict[str, float]:
    """What the untrained model scores; nothing is saved but the metrics and the prompt."""
    if rows is None:
        raise ValueError("--few-shot 0 trains nothing: give rows to evaluate on, by --eval-file or --eval-fraction")
    trainer = recipe.build(rows, rows, training_arguments)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    return metrics


def _head_recipe(arguments: ClassifyArguments, training_arguments: TrainingArguments, rows: DatasetDict) -> Recipe:
    """A new head on the hidden state of the last token (of an encoder: of the first), for any kind of label."""
    kind = problem_type(rows["train"])
    # A number is called after its column.
    names = label_names(rows["train"]) or [arguments.label_column]
    tokenizer = load_tokenizer(arguments)
    max_length = longest_input(arguments)
    make_trainer: Callable[..., Trainer] = OrderedTrainer
    if arguments.r_drop_alpha:
        if kind != SINGLE:
            raise ValueError(f"--r-drop-alpha compares probabilities of one label for each text, and this is {kind}")
        make_trainer = functools.partial(RDropTrainer, alpha=arguments.r_drop_alpha)
    load = functools.partial(
        load_model,
        AutoModelForSequenceClassification,
        training_arguments=training_arguments,
        tokenizer=tokenizer,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type=kind,
    )

    def encode(batch: Batch) -> Batch:
        encoded = tokenizer(batch["text"], truncation=True, max_length=max_length)
        # Only those of the library `tokenizers` say what they cut.
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings or ()] or [False] * len(batch["text"])
        columns = {**encoded, "cut": cut}
        if "label" in batch:
            # Not `label`: a new column would take the type of the old one of its name, and these be whole numbers.
            columns["labels"] = _one_hot(batch["label"], len(names)) if kind == MULTI else batch["label"]
        return columns

    def build(train: Dataset | TorchDataset, test: Dataset | None, training_arguments: TrainingArguments) -> Trainer:
        return make_trainer(
            model=add_adapters(load(arguments), arguments, task_type="SEQ_CLS"),
            args=training_arguments,
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics_of(rows["train"]),
        )

    return Recipe(max_length, encode, build, load, pipeline_tag="text-classification")


def _one_hot(labels: list[list[int]], count: int) -> list[list[float]]:
    return [[float(index in given) for index in range(count)] for given in labels]
