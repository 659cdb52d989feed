"""The model card of a bundled checkpoint, from what the stages of the recipe recorded."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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

A language model of {parameters:.1f} million parameters with the architecture of {family}, trained from scratch for the
package `baichuan-hf`, so that everything in it can be tried offline. It continues a line of Chinese or English more or
less readably, answers a few questions about itself, and is a starting point for fine-tuning on small classification
tasks. It knows no facts to rely on, and what it writes may be wrong or unpleasant: its texts are reviews, novels, laws
and help pages as people wrote them, unfiltered.

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

| text | language | from | licence | bytes to train on | held out |
|---|---|---|---|---:|---:|
{texts}
| all | | | | {train_bytes:,} | {valid_bytes:,} |

Licences are those that the packages name; reviews and newspaper articles were written by people whom the packages do
not name. Labels of the review collections were left behind. Lines that occur twice were dropped, and so were documents
that share 24 characters in a row with one of the data sets that this project measures on (hotel reviews, EPRSTMT, CMRC
2018, Weibo NER, WikiText-2 and others). Chat tuning used {turns} written turns (`conversations.json`, Apache-2.0) and
questions made up for idioms, glosses, lyrics and reviews of the training part above.

## Training

AdamW (0.9, 0.95), weight decay 0.1, warm-up over the first 4 %, then cosine down to 2 % of the peak; bfloat16 autocast
on one H100. Documents are joined with `</s>` between them and cut into blocks of {context} tokens.

| stage | steps | rows a step | epochs | peak learning rate | last loss |
|---|---:|---:|---:|---:|---:|
{training}

## Bits per byte on the held-out texts

Lower is better. Measured in float32 on the saved bfloat16 weights, after chat tuning, in windows of {context} tokens
that see nothing before them; unigram: frequencies of the same tokens in the training part.

| language | bytes | tokens | {name} | unigram | gzip -9 | xz -9e |
|---|---:|---:|---:|---:|---:|---:|
{evaluation}

The two compressors know nothing but this text, and the model has seen others of the same sources.

## Reproduce

```
python -m baichuan_hf.training.tiny corpus     # needs pip, npm and Debian's apt-get
python -m baichuan_hf.training.tiny tokenizer  # pip install 'baichuan-hf[sentencepiece]'
python -m baichuan_hf.training.tiny blocks
python -m baichuan_hf.training.tiny pretrain --name {name} --max-steps {pretrain_steps} --torch-compile  # on a GPU
python -m baichuan_hf.training.tiny chat --name {name} --max-steps {chat_steps}
python -m baichuan_hf.training.tiny evaluate --name {name}
```
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
    packages = {source.name: source.packages for source in SOURCES}
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
                first + (f" and {len(others)} more" if others else ""),
                text["license"],
                f"{text['train_bytes']:,}",
                f"{text['valid_bytes']:,}",
            )
            for text in corpus
            for first, *others in [packages[text["name"]]]
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
                f"{max(log['learning_rate'] for log in state['log_history'] if 'learning_rate' in log):g}",
                f"{[log['loss'] for log in state['log_history'] if 'loss' in log][-1]:.3f}",
            )
            for stage, state in states.items()
        ),
        evaluation=table(
            (language, f"{row['bytes']:,}", f"{row['tokens']:,}", *(f"{row[key]:.3f}" for key in MEASURES))
            for language, row in evaluation.items()
        ),
        pretrain_steps=states["pretrain"]["max_steps"],
        chat_steps=states["chat"]["max_steps"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def table(rows: Iterable[Iterable[Any]]) -> str:
    """The rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
