"""What is refused before a run begins, for every task."""

import importlib.util
import os

from transformers import TrainingArguments

from .arguments import TrainArguments
from .search import check_search


# Packages that --report-to names, of which we have an extra.
TRACKERS = {"tensorboard": "TensorBoard", "trackio": "Trackio"}


def check_arguments(arguments: TrainArguments, training_arguments: TrainingArguments) -> None:
    """Raises ImportError for a package that is not there, ValueError for arguments that do not go together."""
    for name in training_arguments.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ImportError(f"--report-to {name} needs {TRACKERS[name]}: pip install 'baichuan-hf[{name}]'")
    if arguments.hp_search:
        check_search(arguments)
    if arguments.early_stopping_patience and not training_arguments.load_best_model_at_end:
        raise ValueError(
            "--early-stopping-patience needs --load-best-model-at-end true, and with it --eval-strategy and"
            " --save-strategy steps or epoch"
        )
    if int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1")) > 1:
        raise ValueError(
            "context parallelism drops all masks, but the rows of these tasks are packed or padded: use it in a script"
            " with Trainer whose rows are each one text of full length, for a model of rotary positions"
        )
