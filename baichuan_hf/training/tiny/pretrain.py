"""Documents -> blocks of tokens -> a language model, by transformers' Trainer."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ...model.configuration_baichuan import BaichuanConfig
from ...model.modeling_baichuan import BaichuanForCausalLM
from ...model.presets import PRESETS


# Sized for the package: folders of at most 16 and 6 MiB in bfloat16.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": PRESETS["tiny"],
    "tiny-alibi": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "position_embedding_type": "alibi",
        "model_max_length": 1024,
        "normalize_lm_head": False,
    },
}


def token_blocks(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[np.ndarray]:
    """The stream of all documents, </s> behind each, cut into blocks (length,) of uint16; the last part is dropped."""
    stream = np.empty(0, np.uint16)
    texts = iter(texts)
    while batch := [text for _, text in zip(range(1000), texts, strict=False)]:
        rows = tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
        ids = chain.from_iterable([*row, tokenizer.eos_token_id] for row in rows)
        stream = np.concatenate([stream, np.fromiter(ids, np.uint16)])
        whole = len(stream) // length * length
        yield from stream[:whole].reshape(-1, length)
        stream = stream[whole:]


def build_blocks(
    corpus: Path, target: Path, tokenizer: PreTrainedTokenizerBase, *, length: int, repeats: dict[str, int]
) -> None:
    """Write the blocks of a corpus, its documents in random order, as a parquet file with a column `input_ids`.

    Args:
        repeats: how often documents of a source occur, where it is not once.
    """
    documents = Dataset.from_parquet(str(corpus))
    indices = [row for row, source in enumerate(documents["source"]) for _ in range(repeats.get(source, 1))]
    texts = documents.select(indices).shuffle(seed=0)["text"]
    rows = ({"input_ids": block} for block in token_blocks(iter(texts), tokenizer, length))
    features = Features({"input_ids": Sequence(Value("uint16"), length=length)})
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not from_generator: it would keep a second copy of the tokens in the cache of `datasets`.
    Dataset.from_list(list(rows), features=features).to_parquet(target)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Every token is a label."""
    batch = default_data_collator(rows)
    return {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}


def pretrain(name: str, blocks: Path, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments) -> Trainer:
    """Train a model of `SHAPES[name]` on the blocks, from the last checkpoint in `output_dir` if there is one."""
    set_seed(arguments.seed)
    config = BaichuanConfig(
        **SHAPES[name] | {"vocab_size": len(tokenizer)},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    dataset = Dataset.from_parquet(str(blocks)).with_format("torch")
    trainer = Trainer(model=BaichuanForCausalLM(config), args=arguments, train_dataset=dataset, data_collator=collate)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    return trainer
