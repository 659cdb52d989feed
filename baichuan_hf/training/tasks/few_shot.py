"""`--task classify --few-shot`: a prompt, a word for each label, and what a language model thinks of them.

Shape legend: B texts, L labels.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ...data.prompts import Prompt, PromptCollator, check_words, encode_prompts, score_batch
from ...data.tables import SPLIT_SEED
from ..trainer import OrderedTrainer, add_adapters, load_model, load_tokenizer
from .classify_arguments import SINGLE, ClassifyArguments
from .label_metrics import metrics_of
from .labelled_texts import label_names, problem_type, trained_classifier
from .recipes import Batch, Recipe, longest_input


# Texts for each label's mean score: more change it little.
CALIBRATION_ROWS = 256

# Language: template and words of reviews, then the template of other labels.
DEFAULTS = {
    "zh": ("{text}总之很{label}", {"negative": "差", "positive": "好"}, "{text}\n{label}"),
    "en": ("{text} All in all, it was {label}", {"negative": "terrible", "positive": "great"}, "{text}\n{label}"),
}
POLARITY = {
    **dict.fromkeys(("negative", "neg", "负面", "消极", "差评"), "negative"),
    **dict.fromkeys(("positive", "pos", "正面", "积极", "好评"), "positive"),
}


@torch.no_grad()
def score_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompt: Prompt,
    *,
    max_length: int = 512,
    batch_size: int = 32,
) -> Tensor:
    """How a language model scores each label of `prompt.labels` for each text, without any training: (texts, L).

    A score is the log-probability of what the label adds to the prompt, summed over its tokens, less the prompt's
    bias; their softmax is the probability of the labels. Texts are cut so that the prompt is at most `max_length`
    tokens. Raises ValueError for words that the tokenizer does not tell apart.
    """
    check_words(prompt, tokenizer)
    columns = encode_prompts(texts, prompt, tokenizer, max_length=max_length)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"][0]))
    collate = PromptCollator(tokenizer)
    scores = torch.empty(len(rows), len(prompt.words))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = {name: values.to(model.device) for name, values in collate([rows[index] for index in chosen]).items()}
        scores[chosen] = score_batch(model, batch).cpu()
    return scores - torch.tensor(prompt.bias or [0.0] * len(prompt.words))


def predict_labels(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompt: Prompt, **options: Any
) -> list[str]:
    """The likeliest label of each text; `options` as for `score_labels`."""
    scores = score_labels(model, tokenizer, texts, prompt, **options)
    return [prompt.labels[index] for index in scores.argmax(-1).tolist()]


class PromptTrainer(OrderedTrainer):
    """Trainer whose logits are the scores (B, L) of the labels of `prompt`, and whose loss is their cross-entropy."""

    def __init__(self, *args: Any, prompt: Prompt, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompt = prompt
        # The loss is the mean over a batch, which Trainer must divide where it accumulates batches.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        return F.cross_entropy(self._score(model, inputs), inputs["answers"], label_smoothing=smoothing)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("answers")
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self._score(model, inputs)
        loss = None if labels is None else F.cross_entropy(scores, labels)
        return loss, None if prediction_loss_only else scores, labels

    def calibrate(self, rows: Dataset) -> None:
        """Subtract from now on from the score of each label its mean over `rows`, whose labels are not looked at.

        A model prefers words for reasons that no text has given it (Zhao et al. 2021). They ask what it says of a text
        without content; texts of the same kind say more of what it prefers among them (Zhou et al. 2024).
        """
        scores = self.predict(rows.remove_columns("label")).predictions
        self.prompt = dataclasses.replace(self.prompt, bias=tuple(scores.mean(0).tolist()))

    def _score(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        scores = score_batch(model, inputs)
        return scores if self.prompt.bias is None else scores - scores.new_tensor(self.prompt.bias)


def prompt_recipe(arguments: ClassifyArguments, training_arguments: TrainingArguments, rows: DatasetDict) -> Recipe:
    """Pattern-exploiting training (Schick & Schütze 2021), with a causal model: all weights or adapters are trained so
    that the word of the right label becomes the likeliest of the words. Nothing in the model is new.

    Its trainers write the prompt, with what calibration found, to OUTPUT_DIR/prompt.json.
    """
    if (kind := problem_type(rows["train"])) != SINGLE:
        raise ValueError(f"{arguments.train_file}: --few-shot scores one label for each text, but this is {kind}")
    if trained_classifier(arguments):
        raise ValueError(f"--few-shot asks a language model, but {arguments.model} is a classifier")
    tokenizer = load_tokenizer(arguments)
    prompt = choose_prompt(arguments, label_names(rows["train"]), rows["train"]["text"][:])
    check_words(prompt, tokenizer)
    max_length = longest_input(arguments)
    # The collator needs columns that are no arguments of a model.
    training_arguments.remove_unused_columns = False
    load = functools.partial(
        load_model, AutoModelForCausalLM, training_arguments=training_arguments, tokenizer=tokenizer, use_cache=False
    )

    def encode(batch: Batch) -> Batch:
        columns = encode_prompts(batch["text"], prompt, tokenizer, max_length=max_length)
        return columns | ({"label": batch["label"]} if "label" in batch else {})

    def build(train: Dataset | TorchDataset, test: Dataset | None, training_arguments: TrainingArguments) -> Trainer:
        trainer = PromptTrainer(
            model=add_adapters(load(arguments), arguments, task_type="CAUSAL_LM"),
            args=training_arguments,
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            data_collator=PromptCollator(tokenizer),
            compute_metrics=metrics_of(rows["train"]),
            prompt=prompt,
        )
        if arguments.calibrate:
            texts = rows["train"].shuffle(SPLIT_SEED).select(range(min(CALIBRATION_ROWS, len(rows["train"]))))
            trainer.calibrate(texts.map(encode, batched=True, remove_columns="text", desc="Tokenizing"))
        if trainer.is_world_process_zero():
            trainer.prompt.save(str(training_arguments.output_dir))
        return trainer

    return Recipe(max_length, encode, build, load, pipeline_tag="text-generation")


def choose_prompt(arguments: ClassifyArguments, names: list[str], texts: Sequence[str]) -> Prompt:
    """That of --prompt-template and --verbalizer, with the language's defaults where they are not given.

    Raises ValueError for labels without a word, for words without a label, and for labels that are numbers, which say
    nothing to a language model.
    """
    chinese = sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in texts)
    review_template, review_words, template = DEFAULTS["zh" if 2 * chinese > len(texts) else "en"]
    polar = {POLARITY.get(name.lower()) for name in names} == {*review_words}
    words = arguments.words()
    if words is None:
        if any(re.fullmatch(r"[-\d. ]+", name) for name in names):
            raise ValueError(
                f"labels {', '.join(names)} say nothing to a language model: give each a word, as in --verbalizer"
                f" {','.join(f'{name}=word' for name in names)}"
            )
        words = {name: review_words[POLARITY[name.lower()]] if polar else name for name in names}
        template = review_template if polar else template
    for given, known, message in (
        (words, names, "--verbalizer: {!r} is not among the labels: {}"),
        (names, words, "--verbalizer: label {!r} has no word; there are words for: {}"),
    ):
        if missing := [name for name in given if name not in known]:
            raise ValueError(message.format(missing[0], ", ".join(map(repr, known))))
    return Prompt(arguments.prompt_template or template, {name: words[name] for name in names})
