"""`--task seq2seq`: a text from a text, as in translation and summarisation."""

import dataclasses
import functools
import importlib.util
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EncoderDecoderModel,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from ...checkpoints import resolve_model
from ...data.pairs import load_pair_splits, train_pair_tokenizer
from ...data.tables import load_train_and_test, require_columns
from ...model.configuration_baichuan import BaichuanConfig, list_presets
from ..arguments import TrainArguments, option
from ..trainer import add_adapters, check_output_dir, load_model, load_tokenizer, train_and_save
from .language_model import with_eval_rows


logger = logging.getLogger(__name__)

ENCODER = "encoder.embed_tokens.weight"


@dataclass
class Seq2SeqArguments(TrainArguments):
    """What `--task seq2seq` takes; --train-file and --eval-file may also be parallel text: `train` for train.en and
    train.de, with --source-column en --target-column de."""

    source_column: str = option("Column with the text that is read.", "source")
    target_column: str = option("Column with the text that is to be written.", "target")
    max_source_length: int = option("Longer sources are cut to this many tokens.", 256)
    max_target_length: int = option(
        "Longer targets are cut to this many tokens in training; the model writes no more.", 256
    )
    tokenizer: str | None = option(
        "Folder or Hub name of a tokenizer for a preset with --from-scratch; unset: one is trained on the pairs."
    )
    vocab_size: int = option("Pieces of the tokenizer that is trained on the pairs, shared by both sides.", 8000)
    share_embeddings: bool = option(
        "Train one embedding matrix for encoder and decoder (Vaswani et al. 2017); each is saved with a copy.", False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if self.tokenizer and not (self.from_scratch and self.model in list_presets()):
            raise ValueError(
                f"--tokenizer {self.tokenizer}: --model {self.model} brings its own; give a preset and --from-scratch"
            )
        if self.share_embeddings and self.peft:
            raise ValueError("--share-embeddings trains the embeddings: it does not go with --lora and --qlora")


def train_seq2seq(arguments: Seq2SeqArguments, training_arguments: Seq2SeqTrainingArguments) -> dict[str, float]:
    """Train an encoder-decoder on pairs of texts; the folder loads through AutoModelForSeq2SeqLM.

    A preset with --from-scratch, or a Baichuan checkpoint, becomes an `EncoderDecoderModel`: the encoder is the model
    with `is_causal=False`, the decoder the model with new cross-attention. An encoder-decoder is trained as it is.
    Returns the metrics of all_results.json: among them `eval_loss`, without label smoothing, and with
    --predict-with-generate sacreBLEU's `eval_bleu` and `eval_chrf` (0 to 100; on the whole targets) and
    `eval_gen_len`. Raises ValueError or FileNotFoundError, naming the option or file, for what cannot be trained on,
    and ImportError without sacrebleu.
    """
    _check_scores(training_arguments)
    check_output_dir(training_arguments, arguments)
    pairs = load_pairs(arguments)
    tokenizer = _find_tokenizer(arguments, pairs["train"])
    encoded = DatasetDict({split: _encode(pairs[split], tokenizer, arguments, split) for split in pairs})
    load = functools.partial(load_pair, training_arguments=training_arguments, tokenizer=tokenizer)
    model = add_adapters(load(arguments), arguments, task_type="SEQ_2_SEQ_LM")

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("test"),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=(
            functools.partial(_compute_metrics, tokenizer=tokenizer)
            if training_arguments.predict_with_generate
            else None
        ),
        compute_loss_func=functools.partial(
            pair_loss, model=model, label_smoothing=training_arguments.label_smoothing_factor
        ),
    )
    trainer.label_smoother = None  # `pair_loss` smooths, in training alone
    with warnings.catch_warnings():
        # That labels make the decoder's inputs, as they have since transformers 4.12.
        warnings.filterwarnings("ignore", "Version v4.12.0 introduces", FutureWarning)
        return train_and_save(trainer, arguments, load, pipeline_tag="translation")


def pair_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Any = None, *, model: nn.Module, label_smoothing: float
) -> Tensor:
    """Cross-entropy of logits (B, T, V) and labels (B, T), -100 ignored, averaged over all tokens of a step.

    EncoderDecoderModel's own is the mean of a batch: accumulated, it weighs short batches more, and all too much.
    """
    loss = F.cross_entropy(
        outputs.logits.flatten(0, 1).float(),
        labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing if model.training else 0.0,
    )
    return loss / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


def translation_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU and chrF of sacreBLEU, 0 to 100; Chinese references are divided into characters, others as `13a`."""
    from sacrebleu.metrics import BLEU, CHRF

    chinese = sum(bool(re.search(r"[\u4e00-\u9fa5]", text)) for text in references)
    scores = {"bleu": BLEU(tokenize="zh" if 2 * chinese > len(references) else "13a"), "chrf": CHRF()}
    metrics = {name: score.corpus_score(predicted, [references]).score for name, score in scores.items()}
    logger.info("sacreBLEU: %s", ", ".join(str(score.get_signature()) for score in scores.values()))
    return metrics


@torch.no_grad()
def predict_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    max_source_length: int = 256,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """What the model writes for each source; `generation` are arguments of `generate`, such as `num_beams=5`."""
    targets = [""] * len(sources)
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))  # alike in length: little padding
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [sources[row] for row in rows],
            truncation=True,
            max_length=max_source_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **generation)
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            targets[row] = text.strip()
    return targets


def load_pairs(arguments: Seq2SeqArguments) -> DatasetDict:
    """`train` and, unless --eval-fraction is 0, `test`, with columns `source` and `target`; both hold text."""
    columns = {"--source-column": arguments.source_column, "--target-column": arguments.target_column}
    load = functools.partial(load_pair_splits, columns=(arguments.source_column, arguments.target_column))
    splits = load_train_and_test(arguments.train_file, arguments.eval_file, load=load)
    for split, rows in splits.items():
        source = arguments.sources[split]
        require_columns(rows, columns, source)
        names = dict(zip(("source", "target"), columns.values(), strict=True))

        def select(row: dict[str, Any], names: dict[str, str] = names) -> dict[str, str]:
            return {name: "" if row[column] is None else str(row[column]).strip() for name, column in names.items()}

        pairs = rows.map(select, remove_columns=rows.column_names, desc="Reading pairs")
        whole = pairs.filter(lambda row: bool(row["source"] and row["target"]), desc="Dropping incomplete pairs")
        if not len(whole):
            raise ValueError(f"{source}: none of {len(pairs)} rows has both {' and '.join(map(repr, names.values()))}")
        if len(whole) < len(pairs):
            logger.warning(
                "%s: %d of %d rows lack a text and are left out", source, len(pairs) - len(whole), len(pairs)
            )
        splits[split] = whole
    return with_eval_rows(splits, arguments)


def load_pair(
    arguments: Seq2SeqArguments, training_arguments: Seq2SeqTrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The encoder-decoder to train, which generates as --max-target-length and --generation-num-beams say."""
    load = functools.partial(
        load_model, arguments=arguments, training_arguments=training_arguments, tokenizer=tokenizer
    )
    if _is_pair(arguments):
        model = load(AutoModelForSeq2SeqLM)
    else:
        model = EncoderDecoderModel(
            encoder=load(AutoModel, is_causal=False, add_cross_attention=False),
            decoder=load(AutoModelForCausalLM, is_causal=True, add_cross_attention=True),
        )
        if arguments.share_embeddings:
            _share_embeddings(model)
        start = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = {"decoder_start_token_id": start, "bos_token_id": tokenizer.bos_token_id}
        ids |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        for name, value in ids.items():
            setattr(model.config, name, value)
            setattr(model.generation_config, name, value)
    model.generation_config.max_length = arguments.max_target_length + 1  # what begins a target is counted too
    if training_arguments.generation_num_beams is not None:
        model.generation_config.num_beams = training_arguments.generation_num_beams
    return model


def _is_pair(arguments: Seq2SeqArguments) -> bool:
    """Whether --model is an encoder-decoder already. Raises ValueError if it can become none."""
    if arguments.from_scratch and arguments.model in list_presets():
        return False
    config = AutoConfig.from_pretrained(resolve_model(arguments.model))
    if config.is_encoder_decoder:
        if arguments.share_embeddings:
            raise ValueError(f"--share-embeddings: --model {arguments.model} has embeddings already")
        return True
    if config.model_type != BaichuanConfig.model_type:
        raise ValueError(
            f"--model {arguments.model} is a {config.model_type}: --task seq2seq makes an encoder-decoder of a"
            " Baichuan model, or trains one that is an encoder-decoder"
        )
    return False


def _share_embeddings(model: EncoderDecoderModel) -> None:
    model.encoder.set_input_embeddings(model.decoder.get_input_embeddings())
    # EncoderDecoderModel cannot say in its files that the halves share: each is saved with the matrix.
    model.register_state_dict_post_hook(
        lambda module, state, prefix, metadata: state.update({prefix + ENCODER: state[prefix + ENCODER].clone()})
    )


def _find_tokenizer(arguments: Seq2SeqArguments, rows: Dataset) -> PreTrainedTokenizerBase:
    if arguments.tokenizer:
        named = dataclasses.replace(arguments, model=arguments.tokenizer, tokenizer=None, from_scratch=False)
        return load_tokenizer(named)
    if arguments.from_scratch and arguments.model in list_presets():
        texts = (text for row in rows for text in row.values())
        return train_pair_tokenizer(texts, vocab_size=arguments.vocab_size)
    return load_tokenizer(arguments)


def _encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: Seq2SeqArguments, split: str) -> Dataset:
    """`input_ids` and `labels`, which </s> ends; reports what was cut. The targets to evaluate on stay whole."""
    end = tokenizer.eos_token_id
    limits = {"input_ids": arguments.max_source_length}
    if split == "train":
        limits["labels"] = arguments.max_target_length

    def fit(ids: list[int], limit: int) -> list[int]:
        last = [end] if ids[-1] == end else []
        return ids if len(ids) <= limit else ids[: limit - len(last)] + last

    def encode(row: dict[str, str]) -> dict[str, Any]:
        source = tokenizer(row["source"], verbose=False)["input_ids"]
        target = tokenizer(text_target=row["target"], verbose=False)["input_ids"]
        whole = {"input_ids": source, "labels": target if target[-1:] == [end] else [*target, end]}
        fitted = {name: fit(ids, limits[name]) if name in limits else ids for name, ids in whole.items()}
        return {**fitted, "cut": [name for name in limits if len(fitted[name]) < len(whole[name])]}

    encoded = rows.map(encode, remove_columns=rows.column_names, desc="Tokenizing")
    for name, text, option_name in (
        ("input_ids", "sources", "--max-source-length"),
        ("labels", "targets", "--max-target-length"),
    ):
        if count := sum(name in cut for cut in encoded["cut"]):
            source = arguments.sources[split]
            logger.warning(
                "%s: %d of %d %s are cut to %s %d tokens", source, count, len(rows), text, option_name, limits[name]
            )
    return encoded.remove_columns("cut")


def _check_scores(training_arguments: Seq2SeqTrainingArguments) -> None:
    """Raises ImportError or ValueError, before any work is done, if the scores that are asked for cannot be had."""
    if training_arguments.predict_with_generate:
        if importlib.util.find_spec("sacrebleu") is None:
            raise ImportError("--predict-with-generate needs sacreBLEU: pip install 'baichuan-hf[translation]'")
    elif str(training_arguments.metric_for_best_model).removeprefix("eval_") in ("bleu", "chrf", "gen_len"):
        raise ValueError(
            f"--metric-for-best-model {training_arguments.metric_for_best_model} needs --predict-with-generate"
        )


def _compute_metrics(prediction: EvalPrediction, *, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    def decode(rows: Any) -> list[str]:
        ids = np.where(rows == -100, tokenizer.pad_token_id, rows)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    # The ids of the targets, not their texts: `group_by_length` reorders the rows of an evaluation too.
    metrics = translation_metrics(decode(prediction.predictions), decode(prediction.label_ids))
    special = np.isin(prediction.predictions, [-100, *tokenizer.all_special_ids])
    return metrics | {"gen_len": float((~special).sum(-1).mean())}
