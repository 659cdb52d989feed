"""`check_folder`: one part after the other, each as far as those before it allow."""

from __future__ import annotations

import os
from pathlib import Path

from .configuration import check_configuration
from .files import check_files
from .generation import check_generation
from .report import Report
from .tokenizer import check_tokenizer
from .weights import check_weights


def check_folder(folder: str | os.PathLike, *, generate: bool = True, device: str = "auto") -> Report:
    """Look over a checkpoint folder of `model_type` baichuan, whoever wrote it; no code in it is run.

    Weights are read one tensor at a time; only the last step, which lets the model write, loads it whole.

    Args:
        folder: with a config, weights and a tokenizer.
        generate: whether to take that last step, where nothing before it has failed.
        device: that it runs on.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder. To check a model of the Hub, download it first: hf download {folder} --local-dir"
            " FOLDER"
        )
    report = Report(str(folder))
    check_files(path, report)
    config = check_configuration(path, report)
    if config is not None:
        check_weights(path, config, report)
        check_tokenizer(path, config, report)
        if generate and report.ok:
            check_generation(path, config, report, device=device)
    return report
