"""The model card of a bundled checkpoint, from what the stages of the recipe recorded."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote

import yaml
from transformers import AutoConfig

from ...hub import save_card
from .chat import written_turns
from .sources import SOURCES


FAMILIES = {
    "rope": {
        "en": "Baichuan2-7B (rotary positions, normalised head)",
        "zh": "Baichuan2-7B（旋转位置编码，归一化输出层）",
    },
    "alibi": {"en": "Baichuan-13B (ALiBi, plain head)", "zh": "Baichuan-13B（ALiBi，普通输出层）"},
}
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
Rows = list[list[Any]]


def write_card(name: str, work: Path) -> None:
    """Write README.md, the same in Chinese, and card.yaml into the folder of a checkpoint."""
    folder = work / name / "final"
    corpus = json.loads((work / "corpus/sources.json").read_text())
    states = {stage: json.loads((work / name / stage / "trainer_state.json").read_text()) for stage in STAGES}
    sources = {source.name: source for source in SOURCES}
    texts: Rows = [
        [
            text["name"],
            text["language"],
            f"{source.packages[0].split(':')[0]} {unquote(first)}" + (f" and {len(others)} more" if others else ""),
            text["license"],
            f"{text['train_bytes']:,}",
            source.repeats,
            f"{text['valid_bytes']:,}",
        ]
        for text in corpus
        for source, (first, *others) in [(sources[text["name"]], text["files"])]
    ]
    train_bytes, valid_bytes = (sum(text[f"{part}_bytes"] for text in corpus) for part in ("train", "valid"))
    texts.append(["all", "", "", "", f"{train_bytes:,}", "", f"{valid_bytes:,}"])
    training: Rows = [
        [
            stage,
            state["max_steps"],
            state["train_batch_size"],
            f"{state['epoch']:.1f}",
            f"{max(log['learning_rate'] for log in state['log_history'] if 'learning_rate' in log):.1g}",
            f"{[log['loss'] for log in state['log_history'] if 'loss' in log][-1]:.3f}",
        ]
        for stage, state in states.items()
    ]
    save_card(card_of(folder, name, texts=texts, training=training), folder)


def card_of(folder: Path, name: str, *, texts: Rows, training: Rows) -> dict[str, Any]:
    """The data of the card of the checkpoint in `folder`, with the rows of its tables of texts and stages."""
    config = AutoConfig.from_pretrained(folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (_, pretrain_steps, _, _, rate, _), (_, chat_steps, *_) = training
    family = FAMILIES[config.position_embedding_type]
    values = {
        "name": name,
        "parameters": f"{(folder / 'model.safetensors').stat().st_size / 2e6:.1f}",
        "family_en": family["en"],
        "family_zh": family["zh"],
        "context": config.max_position_embeddings,
        "turns": sum(1 for _ in written_turns()),
        "pretrain_steps": pretrain_steps,
        "rate": rate,
        "chat_steps": chat_steps,
        "bits_zh": round(evaluation["zh"]["model"], 3),
        "bits_en": round(evaluation["en"]["model"], 3),
        "shape": [[f"`{key}`", getattr(config, key)] for key in SHAPE],
        "texts": texts,
        "training": training,
        "evaluation": [
            [text, f"{row['bytes']:,}", f"{row['tokens']:,}", *(f"{row[key]:.3f}" for key in MEASURES)]
            for text, row in evaluation.items()
        ],
    }
    return fill(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")), values)


def fill(data: Any, values: Mapping[str, Any]) -> Any:
    """`data` with the `$names` in its texts replaced; a text that is but one of them becomes the value itself."""
    if isinstance(data, dict):
        return {key: fill(value, values) for key, value in data.items()}
    if isinstance(data, list):
        return [fill(value, values) for value in data]
    if isinstance(data, str):
        return values[data[1:]] if data[1:] in values and data[0] == "$" else Template(data).substitute(values)
    return data
