"""The command line of `baichuan-hf train`: the arguments of a task and TrainingArguments, as words or as YAML."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .arguments import TrainArguments
from .tasks import find_task


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(words: Sequence[str]) -> tuple[TrainArguments, TrainingArguments]:
    """The words of a command line; if the first names a YAML file, its keys come first and later words win.

    Raises ValueError or FileNotFoundError with one line that names the option.
    """
    if words and Path(words[0]).suffix in (".yaml", ".yml"):
        words = [*_yaml_words(Path(words[0])), *words[1:]]
    task = find_task(_task_name(words))
    kinds = (task.arguments, task.training_arguments)
    parser = _Parser(kinds, allow_abbrev=False)
    try:
        ours, theirs, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        if "doesn't support bf16" not in str(error):
            raise
        raise ValueError(
            "--bf16: there is no GPU here that computes in bfloat16, as NVIDIA's do from Ampere (2020) on; on an older"
            " one take --fp16 true instead, and on the CPU also --use-cpu true"
        ) from error
    if unknown:
        names = ["--" + f.name.replace("_", "-") for kind in kinds for f in fields(kind)]
        close = difflib.get_close_matches(unknown[0].split("=")[0].replace("_", "-"), names, n=1)
        meant = f"did you mean {close[0]}?" if close else "see baichuan-hf train --help-all"
        raise ValueError(f"unknown argument {unknown[0]!r}; {meant}")
    return ours, theirs


def _task_name(words: Sequence[str]) -> str:
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--task", required=True)
    return parser.parse_known_args(words)[0].task


def _yaml_words(path: Path) -> list[str]:
    """{learning_rate: 1e-4, lora: true, label_names: [a, b]} -> --learning_rate=1e-4 --lora=true --label_names a b."""
    try:
        text = path.read_text(encoding="utf-8")
        settings, typed = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected lines of `option: value`")
    words: list[str] = []
    # Scalars stay as they are written, for argparse to convert: YAML would read `save_strategy: no` as False.
    for key, value in settings.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            words.append(f"--{key}={json.dumps(typed[key])}")
        elif typed[key] is not None:
            words.append(f"--{key}={value}")
    return words
