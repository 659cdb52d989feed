"""A little chat tuning: written conversations, and questions whose answers stand in the corpus."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ...model.chat_templates import ASSISTANT_TOKEN_ID, USER_TOKEN_ID
from .readers import IDIOM_FIELDS


WRITTEN = Path(__file__).with_name("conversations.json")
# Tokens of a row; what is longer is left out.
MAX_LENGTH = 256


def written_turns() -> Iterator[tuple[str, str]]:
    """Every question of conversations.json with every answer to it."""
    for topic in json.loads(WRITTEN.read_text(encoding="utf-8")):
        for question in topic["user"]:
            for answer in topic["assistant"]:
                yield question, answer


def corpus_turns(rows: Dataset, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Words and idioms explained, lyrics to a tune, trick questions, short reviews: made of texts of the corpus."""
    labels = "|".join(IDIOM_FIELDS.values())
    for row in rows:
        lines = row["text"].splitlines()
        match row["source"]:
            case "idioms":
                idiom, _, meaning = rng.choice(lines).partition("：")
                ask = rng.choice(["“{}”是什么意思？", "解释成语：{}", "成语“{}”怎么理解？"])
                yield ask.format(idiom), re.split(f"(?:{labels})：", meaning)[0]
            case "WordNet glosses":
                words, _, meaning = rng.choice(lines).partition(": ")
                ask = rng.choice(['What does "{}" mean?', "Explain the word {}.", 'What is the meaning of "{}"?'])
                yield ask.format(words.split(",")[0]), meaning
            case "Song lyrics" if len(lines) > 2:
                yield rng.choice(["写一首《{}》。", "按词牌{}填一首词。"]).format(lines[0]), "\n".join(lines[2:])
            case "product reviews":
                yield rng.choice(["写一条商品评论。", "帮我写一条评论。"]), row["text"]
            case "trick questions" if len(lines) > 1:
                yield lines[0], "\n".join(lines[1:])
            case "film reviews":
                yield rng.choice(["Write a film review.", "Write a short review of a film."]), lines[0]


def encode_turn(turn: tuple[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Baichuan's format, user id, question, assistant id, answer, </s>; only answer and </s> are labels."""
    question, answer = (tokenizer(text)["input_ids"] for text in turn)
    prompt, completion = [USER_TOKEN_ID, *question, ASSISTANT_TOKEN_ID], [*answer, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def build_chat_rows(
    corpus: Path,
    blocks: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    per_source: int,
    written_repeats: int,
    replay: int,
) -> Dataset:
    """Rows for `chat_tune`.

    Args:
        per_source: documents of each source of the corpus to ask about.
        written_repeats: how often each written turn occurs.
        replay: rows of plain text from the blocks, so that continuing one is not unlearnt.
    """
    rng = random.Random(0)
    texts = Dataset.from_parquet(str(corpus)).shuffle(seed=0)
    sources = texts["source"]
    kept: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        kept.setdefault(source, []).append(index)
    picked = texts.select([index for indices in kept.values() for index in indices[:per_source]])
    turns = [*corpus_turns(picked, rng), *(turn for turn in written_turns() for _ in range(written_repeats))]
    encoded = [row for turn in turns if len((row := encode_turn(turn, tokenizer))["input_ids"]) <= MAX_LENGTH]
    plain = Dataset.from_parquet(str(blocks)).shuffle(seed=0)
    plain = plain.select(range(min(replay, len(plain))))
    ids = [row[:MAX_LENGTH] for row in plain["input_ids"]]
    replayed = Dataset.from_dict({"input_ids": ids, "labels": ids})
    return concatenate_datasets([Dataset.from_list(encoded), replayed])


def chat_tune(
    model: PreTrainedModel, rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments
) -> Trainer:
    """Train on rows of `input_ids` and `labels`, from the last checkpoint in `output_dir` if there is one."""
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=64)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    return trainer
