"""Stops a run whose numbers are none any more, saying where that began; says what to change when memory runs out."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from .arguments import TrainArguments


class NonFiniteLossError(FloatingPointError):
    """The loss of a batch, or a gradient of it, is NaN or infinite."""


def watch_loss(trainer: Trainer) -> None:
    """Let `trainer` raise `NonFiniteLossError` as soon as a loss or a gradient is NaN or infinite.

    Trainer itself trains on, its weights lost at the first step, and writes an average into the log instead.
    """
    compute_loss = trainer.compute_loss
    batches: list[dict[str, Any]] = []
    trainer.add_callback(_GradientWatch(trainer, batches))

    def compute_and_check(model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            batches.append(inputs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss).all():
            place = first_non_finite(model, inputs)
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {trainer.state.global_step}: {place}. {_advice(trainer)}"
            )
        return result

    trainer.compute_loss = compute_and_check


class _GradientWatch(TrainerCallback):
    """Looks at the gradients before each step of the optimiser, while the weights are still good."""

    def __init__(self, trainer: Trainer, batches: list[dict[str, Any]]) -> None:
        self.trainer = trainer
        self.batches = batches  # those of the step

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        batches, model = self.batches.copy(), kwargs["model"]
        self.batches.clear()
        gradients = {
            # Of a divided weight, the part that this process has.
            name: weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        # With fp16 they may overflow: the scaler leaves such a step out and lowers its scale.
        if args.fp16 or _is_finite(nn.utils.get_total_norm(gradients.values())):
            return
        wrong = [name for name, gradient in gradients.items() if not _is_finite(gradient)]
        starts = sum(_padding_starts(batch, model.config.pad_token_id) for batch in batches)
        cause = (
            f". {starts} texts of the batch begin with the padding token (pad_token_id {model.config.pad_token_id}),"
            " whose embedding is zero: so they are in every layer, and the gradients of norms of zero overflow in deep"
            " models. Give the config another pad_token_id"
        )
        raise NonFiniteLossError(
            f"the gradients of {len(wrong)} weights, {wrong[0]} the first, are no numbers at step"
            f" {state.global_step}, though the loss is one; the weights are those of the step before"
            f"{cause if starts else ''}. {_advice(self.trainer)}"
        )


def _padding_starts(inputs: dict[str, Any], pad_token_id: int | None) -> int:
    """Texts of a batch, packed or not, whose first token is one and is the padding token."""
    ids = inputs.get("input_ids")
    if ids is None or pad_token_id is None:
        return 0
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, 0] = True
    if (positions := inputs.get("position_ids")) is not None:
        first |= positions == 0
    if (mask := inputs.get("attention_mask")) is not None and mask.shape == ids.shape:
        first &= mask != 0
    return int((first & (ids == pad_token_id)).sum())


@torch.no_grad()
def first_non_finite(model: nn.Module, inputs: dict[str, Any]) -> str:
    """Which weight, or which module's output, is the first that is NaN or infinite, in the order of computation."""
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the weight {name} is no number any more"
    found: list[str] = []
    names = {module: name or "the model" for name, module in model.named_modules()}

    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not found and not _is_finite(output) and _is_finite((args, kwargs)):
            found.append(f"{names[module]} ({type(module).__name__}) gives it from inputs that are finite")

    hooks = [module.register_forward_hook(check, with_kwargs=True) for module in names]
    try:
        model(**{name: value for name, value in inputs.items() if name != "num_items_in_batch"})
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "every module gives finite numbers; has the batch a label that is not -100?"


def _is_finite(value: Any) -> bool:
    """Whether no tensor in `value` holds NaN or infinity."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True


def _advice(trainer: Trainer) -> str:
    precision = "--bf16 true instead of --fp16, " if trainer.args.fp16 else ""
    return (
        f"Try {precision}a smaller --learning-rate (now {trainer.args.learning_rate:g}), --warmup-steps, or"
        " --max-grad-norm 1; go on from the last checkpoint with --resume-from-checkpoint true."
    )


@contextlib.contextmanager
def explain_out_of_memory(arguments: TrainArguments, training_arguments: TrainingArguments) -> Iterator[None]:
    """Turn torch's OutOfMemoryError into a MemoryError that says what to change, the cheapest first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        advice = "; ".join(
            f"{number}. {text}" for number, text in enumerate(_savings(arguments, training_arguments), 1)
        )
        raise MemoryError(f"{first}. Try, in this order: {advice}") from error


def _savings(arguments: TrainArguments, training_arguments: TrainingArguments) -> Iterator[str]:
    rows, steps = training_arguments.per_device_train_batch_size, training_arguments.gradient_accumulation_steps
    if getattr(arguments, "full_logits", False):
        yield "no --full-logits"
    if rows > 1:
        yield f"--per-device-train-batch-size {rows // 2} --gradient-accumulation-steps {steps * 2}, the same result"
    # Its name in the oldest supported versions is the other one.
    names = ("activation_checkpointing", "gradient_checkpointing")
    if not any(getattr(training_arguments, name, False) for name in names):
        yield f"--{names[not hasattr(training_arguments, names[0])].replace('_', '-')} true, for a third more time"
    if not (training_arguments.bf16 or training_arguments.fp16 or training_arguments.use_cpu):
        yield "--bf16 true"
    yield f"--max-length below {arguments.max_length}"
    if not arguments.peft:
        yield "--lora, or --qlora over a base model of 4 bits"
    elif not arguments.qlora:
        yield "--qlora, over a base model of 4 bits"
    yield 'more GPUs: accelerate launch --config_file "$(baichuan-hf train --launch-config fsdp2)"'
