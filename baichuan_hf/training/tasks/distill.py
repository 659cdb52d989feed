"""`--task distill`: a student learns from a teacher's logits and hidden states, beside the labels."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ...checkpoints import resolve_model
from ..arguments import option
from .classify import train_classifier
from .classify_arguments import ClassifyArguments
from .language_model import pretrain
from .masked_language_model import MaskedLanguageModelArguments, train_masked_language_model


# What a teacher's class ends in -> its Auto class, and the recipe that trains a student of its kind.
KINDS: dict[str, tuple[Any, Callable[..., dict[str, float]]]] = {
    "ForCausalLM": (AutoModelForCausalLM, pretrain),
    "ForMaskedLM": (AutoModelForMaskedLM, train_masked_language_model),
    "ForSequenceClassification": (AutoModelForSequenceClassification, train_classifier),
}


@dataclass
class DistillArguments(ClassifyArguments, MaskedLanguageModelArguments):
    """What `--task distill` takes: that of `pretrain`, `mlm` or `classify`, whichever the teacher was trained by, and
    the teacher. A student that is a teacher with fewer layers or heads is made by `baichuan-hf prune`."""

    teacher: str = option("Folder or Hub name of a trained language model or classifier of the same vocabulary.", "")
    temperature: float = option("Both models' logits are divided by it (Hinton et al. 2015).", 2.0)
    alpha_ce: float = option("Weight of the divergence of the student's distribution from the teacher's.", 0.5)
    alpha_labels: float = option("Weight of the usual loss.", 0.5)
    alpha_hidden: float = option(
        "Weight of the squared distance of hidden states, the student's projected if their width is another (TinyBERT,"
        " Jiao et al. 2020).",
        0.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:
            raise ValueError("--task distill needs --teacher, a folder or Hub name")
        if self.temperature <= 0:
            raise ValueError(f"--temperature is {self.temperature}; it must be above 0")
        alphas = (self.alpha_ce, self.alpha_labels, self.alpha_hidden)
        if min(alphas) < 0 or not any(alphas[::2]):
            raise ValueError(
                f"--alpha-ce, --alpha-labels and --alpha-hidden are {', '.join(map(str, alphas))}; none may be below"
                " 0, and of the first and the last, by which the teacher teaches, not both 0"
            )
        if self.few_shot is not None:
            raise ValueError("--few-shot asks the language model itself: it does not go with --task distill")

    @property
    def preset_tokenizer(self) -> str:
        return self.teacher

    def prepare_trainer(self, trainer: Trainer) -> None:
        distill_from(load_teacher(self, trainer), trainer, self)


def train_distilled(arguments: DistillArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Train a student as the teacher was trained, and towards what the teacher says of the same rows.

    Returns what `pretrain`, `train_masked_language_model` or `train_classifier` does; `eval_loss` is the usual one.
    Raises what they do, and ValueError for a teacher of another task, vocabulary or labels.
    """
    kind = kind_of(arguments.teacher)
    # The logits are compared: none may be skipped.
    return KINDS[kind][1](dataclasses.replace(arguments, full_logits=True), training_arguments)


def kind_of(teacher: str) -> str:
    """The key of `KINDS` for a teacher. Raises ValueError if there is none."""
    names = AutoConfig.from_pretrained(resolve_model(teacher)).architectures or ()
    for kind in KINDS:
        if any(name.endswith(kind) for name in names):
            return kind
    allowed = ", ".join(KINDS)
    raise ValueError(f"--teacher {teacher} is a {', '.join(names)}; a student can learn from one of {allowed}")


def load_teacher(arguments: DistillArguments, trainer: Trainer) -> PreTrainedModel:
    """The teacher, frozen, where the student is. Raises ValueError if it reads other tokens, or has other labels."""
    folder = resolve_model(arguments.teacher)
    teacher = KINDS[kind_of(arguments.teacher)][0].from_pretrained(
        folder, dtype=torch.bfloat16 if trainer.args.bf16 else torch.float32
    )
    sizes = {"teacher": teacher.config.vocab_size, "student": trainer.model.config.vocab_size}
    if sizes["teacher"] != sizes["student"]:
        raise ValueError(
            f"--teacher {arguments.teacher} has a vocabulary of {sizes['teacher']}, the student --model"
            f" {arguments.model} one of {sizes['student']}: their logits cannot be compared"
        )
    if AutoTokenizer.from_pretrained(folder).get_vocab() != trainer.processing_class.get_vocab():
        raise ValueError(
            f"--teacher {arguments.teacher} and the student --model {arguments.model} have tokenizers with other"
            " pieces: what one reads is not what the other does"
        )
    return teacher.to(trainer.args.device).eval().requires_grad_(False)


def distill_from(teacher: PreTrainedModel, trainer: Trainer, arguments: DistillArguments) -> None:
    """Let `trainer` add to its loss what the student, its model, differs from `teacher` by; evaluations stay as they
    are.

    alpha_labels * loss + alpha_ce * T^2 * KL(teacher / T || student / T) + alpha_hidden * MSE of hidden states, layer
    i of the student next to layer round(i * teacher's layers / student's layers), the embeddings among them.
    """
    compute_loss = trainer.compute_loss
    classifies = kind_of(arguments.teacher) == "ForSequenceClassification"
    order = _label_order(teacher, trainer.model) if classifies else []
    problem_type = trainer.model.config.problem_type if classifies else None
    shift = 1 if kind_of(arguments.teacher) == "ForCausalLM" else 0
    if arguments.alpha_hidden:
        _add_projections(trainer, teacher, arguments)

    def compute_distillation_loss(
        model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        labels = inputs["labels"]
        if arguments.alpha_hidden:
            inputs = inputs | {"output_hidden_states": True}
        with torch.no_grad():
            taught = teacher(**{name: value for name, value in inputs.items() if name != "labels"})
        loss, outputs = compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if classifies:
            kept, share = inputs["attention_mask"] != 0, 1.0
            logits, targets = outputs.logits, taught.logits[:, order]
        else:
            kept = F.pad(labels[:, shift:] != -100, (0, shift))  # the places whose logits are scored
            share = _share_of_step(trainer, kept, num_items_in_batch)
            logits, targets = outputs.logits[kept], taught.logits[kept]
        divergence = soft_loss(logits, targets, arguments.temperature, problem_type=problem_type)
        loss = arguments.alpha_labels * loss + arguments.alpha_ce * share * divergence
        if arguments.alpha_hidden:
            distance = hidden_loss(
                outputs.hidden_states,
                taught.hidden_states,
                kept,
                getattr(trainer.model, "hidden_projections", None),
            )
            loss = loss + arguments.alpha_hidden * share * distance
        return (loss, outputs) if return_outputs else loss

    trainer.compute_loss = compute_distillation_loss


def soft_loss(logits: Tensor, targets: Tensor, temperature: float, *, problem_type: str | None = None) -> Tensor:
    """Divergence of distributions (..., classes) at a temperature, times its square, averaged over the first axes.

    With several labels, that of each label's yes or no, averaged over labels too; of numbers the squared distance.
    """
    if problem_type == "regression":
        return F.mse_loss(logits.float(), targets.float())
    student, teacher = logits.float() / temperature, targets.float() / temperature
    if problem_type == "multi_label_classification":
        # Both sides of each label's yes or no: (..., labels, 2).
        student, teacher = (torch.stack([values, torch.zeros_like(values)], -1) for values in (student, teacher))
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean()


def hidden_loss(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], kept: Tensor, projections: nn.ModuleList | None
) -> Tensor:
    """Mean squared distance of hidden states (B, T, width), over the tokens that `kept` (B, T) says."""
    distances = []
    for index, states in enumerate(student):
        matched = teacher[round(index * (len(teacher) - 1) / (len(student) - 1))][kept]
        states = states[kept] if projections is None else projections[index](states[kept])
        distances.append(F.mse_loss(states.float(), matched.float()))
    return torch.stack(distances).mean()


def _share_of_step(trainer: Trainer, kept: Tensor, num_items_in_batch: Any) -> Any:
    """What a mean over the `kept` labels of this batch counts for in a step over several batches or processes."""
    if num_items_in_batch is None:
        return 1.0
    processes = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
    return kept.sum() / num_items_in_batch * processes


def _label_order(teacher: PreTrainedModel, student: PreTrainedModel) -> list[int]:
    """The teacher's place of each of the student's labels."""
    theirs, ours = teacher.config.label2id, [student.config.id2label[i] for i in range(student.config.num_labels)]
    if student.config.problem_type != "regression" and set(ours) != set(theirs):
        raise ValueError(f"the teacher knows the labels {sorted(theirs)}, the training rows have {sorted(ours)}")
    if (teacher.config.problem_type or student.config.problem_type) != student.config.problem_type:
        raise ValueError(
            f"the teacher does {teacher.config.problem_type}, the training rows are {student.config.problem_type}"
        )
    return list(range(len(ours))) if student.config.problem_type == "regression" else [theirs[name] for name in ours]


def _add_projections(trainer: Trainer, teacher: PreTrainedModel, arguments: DistillArguments) -> None:
    """Give the student what turns its hidden states into the teacher's width, until it is saved at the end."""
    ours, theirs = trainer.model.config, teacher.config
    if ours.hidden_size == theirs.hidden_size:
        return
    if arguments.peft or arguments.hp_search:
        raise ValueError(
            f"--alpha-hidden: hidden states of {ours.hidden_size} and {theirs.hidden_size} need projections, which"
            " --lora, --qlora and --hp-search do not train; give 0, or train all weights"
        )
    count = ours.num_hidden_layers + 1
    trainer.model.hidden_projections = nn.ModuleList(
        nn.Linear(ours.hidden_size, theirs.hidden_size, bias=False) for _ in range(count)
    ).to(trainer.model.device)
    trainer.add_callback(_DropProjections())


class _DropProjections(TrainerCallback):
    """Checkpoints hold the projections, to be resumed from; what is saved at the end is a model as any."""

    def on_train_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        del model.hidden_projections
