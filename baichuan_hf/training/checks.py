"""What is refused before a run begins, for every task."""

import importlib.util
import os

from transformers import TrainingArguments

from .arguments import TrainArguments
from .card import find_license
from .search import check_search


# The tasks that need not see all rows first; then the packages of --report-to of which we have an extra.
STREAMING = ("mlm", "pretrain", "sft")
TRACKERS = {"tensorboard": "TensorBoard", "trackio": "Trackio"}


def check_arguments(arguments: TrainArguments, training_arguments: TrainingArguments) -> None:
    """Raises ImportError for a package that is not there, ValueError for arguments that do not go together."""
    for name in training_arguments.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ImportError(f"--report-to {name} needs {TRACKERS[name]}: pip install 'baichuan-hf[{name}]'")
    if arguments.streaming and arguments.task not in STREAMING:
        raise ValueError(
            f"--streaming is for {', '.join(STREAMING)}: --task {arguments.task} looks at all rows before it trains"
        )
    if arguments.streaming and training_arguments.max_steps <= 0:
        raise ValueError("--streaming needs --max-steps: where a stream ends is not known")
    if arguments.hp_search:
        check_search(arguments)
    if arguments.early_stopping_patience and not training_arguments.load_best_model_at_end:
        raise ValueError(
            "--early-stopping-patience needs --load-best-model-at-end true, and with it --eval-strategy and"
            " --save-strategy steps or epoch"
        )
    if training_arguments.push_to_hub and find_license(arguments)["license"] == "unknown":
        raise ValueError(
            f"--push-to-hub needs a card with a licence, and that of --model {arguments.model} is not known here: give"
            " --license, as in --license apache-2.0"
        )
    if int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", "1")) > 1:
        raise ValueError(
            "context parallelism drops all masks, but the rows of these tasks are packed or padded: leave"
            " parallelism_config_cp_size at 1, and divide the model by --launch-config fsdp2"
        )
