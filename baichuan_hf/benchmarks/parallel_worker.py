"""One process of a run of `parallel.py`: trains by transformers' Trainer, and notes the losses and times of the steps.

It is started by `accelerate launch` or `torchrun`, as a user's own script is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.distributed import DistributedConfig

import baichuan_hf  # noqa: F401, registers the model

from ..training.launch import leave_group
from .timing import synchronize


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())


def main() -> None:
    settings = json.loads(sys.argv[1])
    arguments = TrainingArguments(
        output_dir=settings["output_dir"],
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        bf16=settings["device"] == "cuda",
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=settings["device"] == "cpu",
    )
    size = settings["tensor_parallel_size"]
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"],
        dtype=torch.float32,
        use_cache=False,
        distributed_config=DistributedConfig(tp_size=size) if size > 1 else None,
    )
    model.skip_logits = True
    tokens = torch.randint(
        3, model.config.vocab_size, settings["data_shape"], generator=torch.Generator().manual_seed(0)
    )
    clock = Clock(arguments.device)
    trainer = Trainer(
        model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens], callbacks=[clock]
    )
    trainer.train()
    if trainer.is_world_process_zero():
        on_gpu = arguments.device.type == "cuda"
        result = {
            "seconds": [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)],
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        }
        Path(settings["result"]).write_text(json.dumps(result), encoding="utf-8")
    leave_group()


if __name__ == "__main__":
    main()
