"""What a run was asked for, kept beside what it makes: to repeat it, and to see when one goes on with other values."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .arguments import TrainArguments


logger = logging.getLogger(__name__)

# In --output-dir; `baichuan-hf train` takes it as it is.
ARGUMENTS_FILE = "arguments.yaml"

# What a run has to share with the checkpoints that it finds; the last only if it does not go on from them.
IDENTITY = ("task", "model", "from_scratch", "train_file")
# Beginnings of the names of arguments that change nothing in what is learnt.
HARMLESS = (
    "output_dir",
    "resume",
    "logging_",
    "report_to",
    "save_",
    "eval_s",
    "disable_tqdm",
    "push_",
    "hub_",
    "merge",
    "layout",
    "license",
)
# What the state of an optimiser holds: that of a checkpoint stays.
IN_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
# Of a secret only a stand-in is there, the second is a dictionary filled with defaults, the third is for one time.
NEVER = ("hub_token", "accelerator_config", "resume_from_checkpoint")


def chosen_arguments(arguments: TrainArguments, training_arguments: TrainingArguments) -> dict[str, Any]:
    """The arguments of a run that are not at their default, by name, as YAML can hold them."""
    chosen = {}
    # TRL's own arguments derive from these too, but are no arguments of `baichuan-hf train`.
    seq2seq = isinstance(training_arguments, Seq2SeqTrainingArguments)
    kind = Seq2SeqTrainingArguments if seq2seq else TrainingArguments
    for owner, values in ((arguments, dataclasses.asdict(arguments)), (kind, training_arguments.to_dict())):
        for field in dataclasses.fields(owner):
            if field.init and field.name not in NEVER:
                default = getattr(field.default, "value", field.default)  # of an enumeration
                value = values[field.name]
                # TrainingArguments makes False or [] of some that are not given.
                if value != default and (value or default not in (None, "", "none", dataclasses.MISSING)):
                    chosen[field.name] = value
    return chosen


def write_arguments(file: Path, chosen: dict[str, Any], train_file: str) -> None:
    """Write `chosen` as the YAML file that `baichuan-hf train` takes, the digest of the training file in its head."""
    head = f"# sha256 of train_file: {digest(train_file)}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_arguments(folder: Path) -> tuple[dict[str, Any], str] | None:
    """What `write_arguments` wrote into `folder`, and the digest; None if there is nothing."""
    if not (folder / ARGUMENTS_FILE).is_file():
        return None
    text = (folder / ARGUMENTS_FILE).read_text(encoding="utf-8")
    return yaml.safe_load(text), text.partition("\n")[0].rpartition(" ")[2]


def digest(source: str) -> str:
    """The beginning of the SHA-256 of a file; `-` for a folder or a data set on the Hub."""
    path = Path(source).expanduser()
    if not path.is_file():
        return "-"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in `folder` that was saved last, and to its end: a run may have been killed while it saved one.

    A run may have begun anew above the checkpoints of a longer one, whose numbers are higher.
    """
    saved = {}
    for path in folder.glob("checkpoint-*"):
        state, step = path / "trainer_state.json", path.name.removeprefix("checkpoint-")
        try:
            json.loads(state.read_text(encoding="utf-8"))  # what Trainer writes last
            saved[path] = (state.stat().st_mtime_ns, int(step))
        except (OSError, ValueError):
            continue
    return max(saved, key=saved.__getitem__, default=None)


def check_checkpoints(training_arguments: TrainingArguments, arguments: TrainArguments) -> None:
    """Raises ValueError if the checkpoints in --output-dir are of another run than this one, which would mix them."""
    folder = Path(str(training_arguments.output_dir))
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        return
    prefix = f"--output-dir {folder}: holds checkpoints of another run ({Path(last).name}"
    if (saved := read_arguments(folder)) is None:
        raise ValueError(f"{prefix}, without {ARGUMENTS_FILE}); give another folder")
    resumes = str(training_arguments.resume_from_checkpoint or "false").lower() != "false"
    for name in IDENTITY[: -1 if resumes else None]:
        default = next(field.default for field in dataclasses.fields(arguments) if field.name == name)
        before, now = saved[0].get(name, default), getattr(arguments, name)
        if before != now:
            raise ValueError(f"{prefix}, --{name.replace('_', '-')} {before}, now {now}); give another folder")
    if not resumes:
        logger.warning(
            "--output-dir %s: holds %s of a run before. This one begins anew and writes over it; to go on from there,"
            " give --resume-from-checkpoint true.",
            folder,
            Path(last).name,
        )


def record_run(arguments: TrainArguments, training_arguments: TrainingArguments, checkpoint: str | None) -> None:
    """Write the arguments into --output-dir; of those that differ from the run that saved `checkpoint`, warn."""
    chosen = chosen_arguments(arguments, training_arguments)
    if checkpoint is not None and (saved := read_arguments(Path(checkpoint).parent)) is not None:
        before, before_digest = saved
        restored = IN_OPTIMIZER if any(Path(checkpoint).glob("optimizer*")) else ()
        changes = [
            f"{name} {before.get(name, 'unset')} -> {chosen.get(name, 'unset')}"
            + " (without effect: the optimiser that was saved goes on)" * (name in restored)
            for name in dict.fromkeys([*before, *chosen])
            if before.get(name) != chosen.get(name) and not name.startswith(HARMLESS)
        ]
        if before_digest != digest(arguments.train_file):
            changes.append(f"the content of {arguments.train_file}")
        if changes:
            logger.warning(
                "%s was saved by a run with other arguments or data; this one will not end where that would have: %s",
                checkpoint,
                "; ".join(changes),
            )
    write_arguments(Path(str(training_arguments.output_dir)) / ARGUMENTS_FILE, chosen, arguments.train_file)
