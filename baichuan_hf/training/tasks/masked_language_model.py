"""`--task mlm`: the words behind masks, by an encoder."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ...checkpoints import resolve_model
from ...data.masking import WholeWordMasking, split_words, word_numbers
from ...data.tables import in_memory
from ...model.configuration_baichuan import list_presets
from ..arguments import TrainArguments, option
from ..trainer import check_output_dir, load_model, load_tokenizer, train_and_save
from .language_model import LanguageModelArguments, language_model_trainer, load_texts


@dataclass
class MaskedLanguageModelArguments(LanguageModelArguments):
    """What `--task mlm` takes besides."""

    mlm_probability: float = option("Share of the words that are hidden.", 0.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"--mlm-probability is {self.mlm_probability}; it must lie between 0 and 1")


def train_masked_language_model(
    arguments: MaskedLanguageModelArguments, training_arguments: TrainingArguments
) -> dict[str, float]:
    """Train an encoder on plain text; a causal Baichuan checkpoint becomes one (`is_causal=False`).

    Whole words are hidden, Chinese ones as jieba divides them if it is installed. A tokenizer without a mask token
    gets one. Returns the metrics of all_results.json, among them `eval_loss` and `eval_perplexity`. Raises ValueError
    or FileNotFoundError, naming the option or file, for what cannot be trained on.
    """
    check_output_dir(training_arguments, arguments)
    tokenizer = load_tokenizer(arguments)
    new_tokens = []
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        new_tokens = [tokenizer.mask_token_id]
    with training_arguments.main_process_first(desc="tokenizing"):
        workers = arguments.preprocessing_num_workers
        rows = DatasetDict(
            {
                name: encode_words(texts, tokenizer, arguments.max_length, num_proc=workers)
                for name, texts in load_texts(arguments, seed=training_arguments.seed).items()
            }
        )
    # The collator needs the column `words`, which is no argument of a model.
    training_arguments.remove_unused_columns = False

    def load(arguments: TrainArguments) -> PreTrainedModel:
        model = load_model(
            AutoModelForMaskedLM, arguments, training_arguments, tokenizer=tokenizer, **_encoder_values(arguments)
        )
        if len(tokenizer) > model.config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        return model

    collate = WholeWordMasking(tokenizer, arguments.mlm_probability)
    trainer = language_model_trainer(
        load,
        arguments,
        training_arguments,
        tokenizer,
        rows,
        collate,
        task_type="FEATURE_EXTRACTION",
        new_tokens=new_tokens,
    )
    return train_and_save(trainer, arguments, load, pipeline_tag="fill-mask")


def _encoder_values(arguments: TrainArguments) -> dict[str, Any]:
    """What makes an encoder of a Baichuan config; other architectures are what they are."""
    preset = arguments.from_scratch and arguments.model in list_presets()
    if preset or AutoConfig.from_pretrained(resolve_model(arguments.model)).model_type == "baichuan":
        return {"is_causal": False}
    return {}


def encode_words(
    texts: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, length: int, *, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Rows of at most `length` tokens: `input_ids`, and `words`, the number of each token's word. Longer texts become
    several rows; parts without a word are left out."""
    split = split_words()

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        rows: dict[str, list[list[int]]] = {"input_ids": [], "words": []}
        encoded = tokenizer(
            batch["text"],
            return_offsets_mapping=True,
            return_attention_mask=False,
            add_special_tokens=False,
            verbose=False,
        )
        for text, ids, offsets in zip(batch["text"], encoded["input_ids"], encoded["offset_mapping"], strict=True):
            words = word_numbers(iter(split(text)), offsets)
            for start in range(0, len(ids), length):
                part = words[start : start + length]
                first = min((word for word in part if word >= 0), default=None)
                if first is not None:
                    rows["input_ids"].append(ids[start : start + length])
                    rows["words"].append([word - first if word >= 0 else -1 for word in part])
        return rows

    return texts.map(encode, batched=True, remove_columns=["text"], **in_memory(texts, "Tokenizing", num_proc))
