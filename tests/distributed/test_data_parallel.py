"""A plain Trainer script under `accelerate launch` with two processes against one process."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from baichuan_hf import BaichuanForCausalLM
from tests.distributed.launch import ACCELERATE, launch
from tests.helpers import tiny_config


STEPS = 3
ROWS_PER_STEP = 4


def rows() -> list[dict[str, torch.Tensor]]:
    """Rows that count differently in the loss: each ignores the labels of its first tokens, from none to four."""
    texts = torch.arange(STEPS * ROWS_PER_STEP * 10).view(-1, 10) % 120 + 3
    ignored = torch.arange(len(texts)) % 5
    labels = texts.where(torch.arange(10) >= ignored[:, None], -100)
    return [{"input_ids": text, "labels": label} for text, label in zip(texts, labels, strict=True)]


def train(folder: Path, name: str, *, rows_per_process: int) -> None:
    """Train the model in `folder`/start and save it as `folder`/`name`."""
    arguments = TrainingArguments(
        output_dir=folder / name,
        max_steps=STEPS,
        per_device_train_batch_size=rows_per_process,
        optim="sgd",  # Adam would blow rounding up to the size of the learning rate
        learning_rate=0.5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(folder / "start"), arguments, train_dataset=rows())
    trainer.train()
    trainer.save_model()


def test_two_processes_equal_one(tmp_path):
    BaichuanForCausalLM(tiny_config(normalize_lm_head=True)).save_pretrained(tmp_path / "start")
    train(tmp_path, "one", rows_per_process=ROWS_PER_STEP)
    launch(ACCELERATE, "tests.distributed.test_data_parallel", tmp_path)

    start, one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("start", "one", "two"))
    assert not torch.allclose(one.lm_head.weight, start.lm_head.weight, atol=1e-3)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    train(Path(sys.argv[1]), "two", rows_per_process=ROWS_PER_STEP // 2)
