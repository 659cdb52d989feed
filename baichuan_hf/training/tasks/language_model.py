"""`--task pretrain` and `--task sft`: the next token of plain text, and of what an assistant says."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from datasets import Sequence as ListOf
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from ...data.conversations import encode_conversation, to_messages
from ...data.tables import (
    SPLIT_SEED,
    column_names,
    hold_out,
    in_memory,
    load_splits,
    load_train_and_test,
    require_columns,
)
from ..arguments import TrainArguments, option
from ..trainer import add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save


logger = logging.getLogger(__name__)

TOKENS = Features({name: ListOf(Value("int32")) for name in ("input_ids", "labels", "position_ids")})


@dataclass
class LanguageModelArguments(TrainArguments):
    """What the tasks of language models take besides."""

    full_logits: bool = option(
        "Hold the logits of a whole batch for the loss, as transformers does, instead of a part at a time.", False
    )


@dataclass
class ChatArguments(LanguageModelArguments):
    """What `--task sft` takes besides."""

    packing: bool = option(
        "Put the conversations of a batch into one row without padding; they do not see each other.", False
    )


class LanguageModelTrainer(Trainer):
    """Trainer whose label smoothing goes with a loss in chunks, where there are no logits to smooth afterwards, and
    leaves the loss of an evaluation as it is; from that it computes the perplexity."""

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(metrics[f"{metric_key_prefix}_loss"], 700))
        return metrics

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        smoother: Any = self.label_smoother  # type: ignore[has-type]
        in_chunks = getattr(self.accelerator.unwrap_model(model), "skip_logits", False)
        if smoother is None or (model.training and not in_chunks):
            return super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            inputs = inputs | {"label_smoothing": smoother.epsilon}
        self.label_smoother = None
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.label_smoother = smoother


def pretrain(arguments: LanguageModelArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Train on plain text, from scratch or from a checkpoint.

    The documents are joined, </s> behind each, and cut into rows of --max-length tokens; the documents of a row do
    not see each other. Returns the metrics of all_results.json, among them `eval_loss` and `eval_perplexity`. Raises
    ValueError or FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    tokenizer = load_tokenizer(arguments)
    with training_arguments.main_process_first(desc="tokenizing"):
        texts = load_texts(arguments, seed=training_arguments.seed)
        workers = arguments.preprocessing_num_workers
        rows = DatasetDict(
            {
                name: pack_texts(split, tokenizer, arguments.max_length, num_proc=workers)
                for name, split in texts.items()
            }
        )
    if not arguments.streaming and not len(rows["train"]):
        raise ValueError(
            f"{arguments.train_file}: holds fewer than --max-length {arguments.max_length} tokens; make it smaller"
        )
    return _train_causal(arguments, training_arguments, tokenizer, rows, default_data_collator)


def fine_tune_chat(arguments: ChatArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Train on conversations, on what the assistant says in them.

    Returns and raises what `pretrain` does.
    """
    check_output_dir(training_arguments, arguments)
    tokenizer = load_tokenizer(arguments)
    with training_arguments.main_process_first(desc="tokenizing"):
        splits = with_eval_rows(load_rows(arguments, seed=training_arguments.seed), arguments)
        rows = DatasetDict(
            {
                name: encode_chats(split, tokenizer, arguments, arguments.sources[name])
                for name, split in splits.items()
            }
        )
    collate: Callable[..., Any] = DataCollatorForSeq2Seq(tokenizer)
    if arguments.packing:
        collate = DataCollatorWithFlattening()
    return _train_causal(arguments, training_arguments, tokenizer, rows, collate)


def _train_causal(
    arguments: LanguageModelArguments,
    training_arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: DatasetDict,
    collate: Callable[..., Any],
) -> dict[str, float]:
    load = functools.partial(
        load_model,
        AutoModelForCausalLM,
        training_arguments=training_arguments,
        tokenizer=tokenizer,
        use_cache=False,
    )
    trainer = language_model_trainer(
        load, arguments, training_arguments, tokenizer, rows, collate, task_type="CAUSAL_LM"
    )
    return train_and_save(trainer, arguments, load, pipeline_tag="text-generation")


def language_model_trainer(
    load: Callable[[TrainArguments], PreTrainedModel],
    arguments: LanguageModelArguments,
    training_arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: DatasetDict,
    collate: Callable[..., Any],
    *,
    task_type: str,
    new_tokens: Sequence[int] = (),
) -> LanguageModelTrainer:
    """The trainer of a language model, causal or masked, whose logits are held only if --full-logits asks for it."""
    model = load(arguments)
    _warn_of_length(model, arguments)
    if hasattr(model, "skip_logits"):
        model.skip_logits = not arguments.full_logits
    if arguments.streaming:
        # Else one process would read for all, and join their batches, whose rows may be of different lengths.
        training_arguments.accelerator_config.dispatch_batches = False
    # The logits of a whole evaluation would not fit; the loss is all that is asked for.
    training_arguments.prediction_loss_only = True
    return LanguageModelTrainer(
        model=add_adapters(model, arguments, task_type=task_type, new_tokens=new_tokens),
        args=training_arguments,
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        processing_class=tokenizer,
        data_collator=collate,
    )


def _warn_of_length(model: PreTrainedModel, arguments: TrainArguments) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and arguments.max_length > positions:
        computed = getattr(model.config, "position_embedding_type", "rope") in ("rope", "alibi", "relative", "none")
        logger.warning(
            "--max-length %d is more than the %d positions that %s was made for (max_position_embeddings): %s",
            arguments.max_length,
            positions,
            arguments.model,
            "it has to learn the others now" if computed else "it has no others, and fails at the first longer row",
        )


def load_rows(arguments: TrainArguments, *, seed: int) -> DatasetDict:
    """`train`, and `test` if there is one; with --streaming the first is a stream, shuffled in a buffer by `seed`."""
    if not arguments.streaming:
        return load_train_and_test(arguments.train_file, arguments.eval_file)
    if arguments.eval_fraction and not arguments.eval_file:
        raise ValueError(
            "--streaming cannot hold out a share of rows it has not seen: give --eval-file, or --eval-fraction 0"
        )
    splits = load_train_and_test(arguments.train_file, load=functools.partial(load_splits, streaming=True))
    rows = DatasetDict(train=splits["train"].shuffle(seed=seed, buffer_size=arguments.shuffle_buffer))
    if arguments.eval_file:
        rows["test"] = load_train_and_test(arguments.eval_file)["train"]
    return rows


def load_texts(arguments: TrainArguments, *, seed: int = SPLIT_SEED) -> DatasetDict:
    """`train` and, unless --eval-fraction is 0, `test`, with the one column `text`; empty rows are left out."""
    splits = load_rows(arguments, seed=seed)
    for name, split in splits.items():
        source = arguments.sources[name]
        require_columns(split, {"--text-column": arguments.text_column}, source)
        texts = split.select_columns(arguments.text_column)
        if arguments.text_column != "text":
            texts = texts.rename_column(arguments.text_column, "text")
        options = in_memory(texts, "Dropping empty rows")
        splits[name] = texts.filter(lambda row: bool(row["text"] and row["text"].strip()), **options)
        if isinstance(texts, Dataset) and not len(splits[name]):
            raise ValueError(f"{source}: column {arguments.text_column!r} holds no text")
    return with_eval_rows(splits, arguments)


def with_eval_rows(splits: DatasetDict, arguments: TrainArguments) -> DatasetDict:
    """`splits` with a `test` split: a share of the training rows, the same in every run, where there is none."""
    if "test" in splits or not arguments.eval_fraction:
        return splits
    return hold_out(splits["train"], arguments.eval_fraction)


def pack_texts(
    texts: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, length: int, *, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Rows of exactly `length` tokens from the stream of all texts, </s> behind each; what is left over is dropped.

    `position_ids` restart with every text, by which the model keeps them apart, and the first token of a text is no
    label: nothing that it could be told from is seen.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch["text"], return_attention_mask=False, verbose=False)["input_ids"]
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded]}

    def cut(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        ids = [token for text in batch["input_ids"] for token in text]
        places = [place for text in batch["input_ids"] for place in range(len(text))]
        rows: dict[str, list[list[int]]] = {name: [] for name in TOKENS}
        for start in range(0, len(ids) - length + 1, length):
            row, row_places = ids[start : start + length], places[start : start + length]
            rows["input_ids"].append(row)
            rows["labels"].append([token if place else -100 for token, place in zip(row, row_places, strict=True)])
            # A text that began in the row before goes on at 0: it is a text of its own here.
            rows["position_ids"].append([min(place, column) for column, place in enumerate(row_places)])
        return rows

    options = in_memory(texts, "Tokenizing", num_proc)
    encoded = texts.map(encode, batched=True, remove_columns=["text"], **options)
    # What is left over of a batch is lost: large ones lose little.
    options = in_memory(texts, "Packing", num_proc)
    return encoded.map(cut, batched=True, batch_size=10_000, remove_columns=["input_ids"], features=TOKENS, **options)


def encode_chats(
    rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, arguments: TrainArguments, source: str
) -> Dataset | IterableDataset:
    """`input_ids` and `labels` of conversations, cut to --max-length; those where the assistant then says nothing are
    left out. What was cut or left out is reported, but for a stream, whose rows are not known yet."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        try:
            encoded = encode_conversation(to_messages(row), tokenizer)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error
        whole = len(encoded["input_ids"])
        return {name: ids[: arguments.max_length] for name, ids in encoded.items()} | {"whole": whole}

    options = in_memory(rows, "Tokenizing", arguments.preprocessing_num_workers)
    encoded = rows.map(encode, remove_columns=column_names(rows), **options)
    options = in_memory(rows, "Dropping silent rows")
    said = encoded.filter(lambda row: any(label != -100 for label in row["labels"]), **options)
    if isinstance(said, IterableDataset):
        return said.remove_columns("whole")
    cut = sum(whole > arguments.max_length for whole in encoded["whole"])
    if cut or len(said) < len(encoded):
        logger.warning(
            "%s: %d of %d conversations are cut to --max-length %d tokens; %d in which the assistant then says nothing"
            " are left out",
            source,
            cut,
            len(encoded),
            arguments.max_length,
            len(encoded) - len(said),
        )
    if not len(said):
        raise ValueError(f"{source}: in none of {len(encoded)} conversations does the assistant say anything")
    return said.remove_columns("whole")
