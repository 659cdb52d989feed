"""The model card of a bundled checkpoint, from what the stages of the recipe recorded."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from transformers import AutoConfig

from .chat import written_turns
from .sources import SOURCES


CARD = """\
---
license: apache-2.0
language: [zh, en]
library_name: transformers
pipeline_tag: text-generation
tags: [baichuan, baichuan-hf]
---
# {name}

A language model of {parameters:.1f} million parameters, built like {family}
and trained from scratch for the package `baichuan-hf`, so that everything in it can be tried offline. It continues a
line of Chinese or English in words that hang together more than they make sense, answers a few questions about itself,
and is a starting point for fine-tuning on small classification tasks. It knows no facts to rely on, and what it writes
may be wrong or unpleasant: its texts are reviews, jokes, novels, scripture, laws and help pages as people wrote
them, unfiltered.

```python
import baichuan_hf
from transformers import pipeline

generate = pipeline("text-generation", model=str(baichuan_hf.bundled_checkpoint("{name}")))
print(generate([{{"role": "user", "content": "你是谁？"}}])[0]["generated_text"][-1]["content"])
```

## Shape

| | |
|---|---|
{shape}

## Texts

| text | language | from | licence | bytes to train on | times an epoch | held out |
|---|---|---|---|---:|---:|---:|
{texts}
| all | | | | {train_bytes:,} | | {valid_bytes:,} |

Licences are those that the packages name. The film reviews come from IMDb and Rotten Tomatoes, the product reviews
from Chinese shops, the newspaper is the People's Daily of January 1998; jokes, diaries, quips and trick questions were
collected from Chinese forums for a chat bot; their authors are not named. A language model answered the questions and
explained the jargon.
Labels of reviews and tags of words were left behind. Lines that occur twice were dropped, and so were documents that
share 24 characters in a row with a data set that this project measures on (ChnSentiCorp hotel reviews, EPRSTMT, CMRC
2018, Weibo NER, Multi30k, WikiText-2 and others). Chat tuning used {turns} written turns (`conversations.json`,
Apache-2.0), turns made of idioms, glosses, lyrics, trick questions and reviews of the training part, mixed with plain
text.

## Training

AdamW (0.9, 0.95), weight decay 0.1, warm-up over the first 4 %, then cosine down to 2 % of the peak; bfloat16 autocast
on one H100. Documents are joined with `</s>` between them and cut into blocks of {context} tokens.

| stage | steps | rows a step | epochs | peak learning rate | last loss |
|---|---:|---:|---:|---:|---:|
{training}

## Bits per byte on the held-out texts

Lower is better. Measured in float32 on the saved bfloat16 weights, after chat tuning, in windows of {context} tokens
that see nothing before them; unigram: frequencies of the same tokens in the training part. `zh` and `en` are all
held-out documents of a language, and the rows after them those of one text. The last two are half a page of everyday
prose in each language, written to measure on (`held_out.json`); it is too short for a compressor to get going.

| text | bytes | tokens | {name} | unigram | gzip -9 | xz -9e |
|---|---:|---:|---:|---:|---:|---:|
{evaluation}

The compressors know nothing but the text itself, and the model has seen others of the same sources; laws weigh most in
`zh`.

## Reproduce

```
python -m baichuan_hf.training.tiny corpus     # needs pip, npm and Debian's apt-get; --unseen FILE for each test set
python -m baichuan_hf.training.tiny tokenizer  # pip install 'baichuan-hf[sentencepiece]'
python -m baichuan_hf.training.tiny blocks
python -m baichuan_hf.training.tiny pretrain --name {name} --max-steps {pretrain_steps} --learning-rate {rate:.1g}
python -m baichuan_hf.training.tiny chat --name {name} --max-steps {chat_steps}
python -m baichuan_hf.training.tiny evaluate --name {name}
python -m baichuan_hf.training.tiny card --name {name}
```

Both bundled checkpoints share one tokenizer, trained on the texts that the card of `tiny-alibi` lists. For the same
ids put its `tokenizer.model` into `tokenizer/` of the work folder in place of the second command.
"""
FAMILIES = {"rope": "Baichuan2-7B (rotary positions, normalised head)", "alibi": "Baichuan-13B (ALiBi, plain head)"}
SHAPE = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "position_embedding_type",
    "normalize_lm_head",
    "z_loss_weight",
]
STAGES = ["pretrain", "chat"]
MEASURES = ["model", "unigram", "gzip", "xz"]


def write_card(name: str, work: Path) -> None:
    """Write README.md into the folder of a checkpoint."""
    folder = work / name / "final"
    config = AutoConfig.from_pretrained(folder)
    corpus = json.loads((work / "corpus/sources.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    states = {stage: json.loads((work / name / stage / "trainer_state.json").read_text()) for stage in STAGES}
    rates = {
        stage: max(log["learning_rate"] for log in state["log_history"] if "learning_rate" in log)
        for stage, state in states.items()
    }
    sources = {source.name: source for source in SOURCES}
    card = CARD.format(
        name=name,
        family=FAMILIES[config.position_embedding_type],
        parameters=(folder / "model.safetensors").stat().st_size / 2e6,
        context=config.max_position_embeddings,
        shape=table((f"`{key}`", getattr(config, key)) for key in SHAPE),
        texts=table(
            (
                text["name"],
                text["language"],
                f"{source.packages[0].split(':')[0]} {unquote(first)}"
                + (f" and {len(others)} more" if others else ""),
                text["license"],
                f"{text['train_bytes']:,}",
                source.repeats,
                f"{text['valid_bytes']:,}",
            )
            for text in corpus
            for source, (first, *others) in [(sources[text["name"]], text["files"])]
        ),
        train_bytes=sum(text["train_bytes"] for text in corpus),
        valid_bytes=sum(text["valid_bytes"] for text in corpus),
        turns=sum(1 for _ in written_turns()),
        training=table(
            (
                stage,
                state["max_steps"],
                state["train_batch_size"],
                f"{state['epoch']:.1f}",
                f"{rates[stage]:.1g}",
                f"{[log['loss'] for log in state['log_history'] if 'loss' in log][-1]:.3f}",
            )
            for stage, state in states.items()
        ),
        evaluation=table(
            (language, f"{row['bytes']:,}", f"{row['tokens']:,}", *(f"{row[key]:.3f}" for key in MEASURES))
            for language, row in evaluation.items()
        ),
        pretrain_steps=states["pretrain"]["max_steps"],
        rate=rates["pretrain"],
        chat_steps=states["chat"]["max_steps"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def table(rows: Iterable[Iterable[Any]]) -> str:
    """The rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
