"""The files of a folder: what is missing, cut short, or left over."""

from __future__ import annotations

from pathlib import Path

from ..model.checkpoint_files import (
    WEIGHT_FILES,
    find_problems,
    first_weight_file,
    is_lfs_pointer,
    lfs_pointer_message,
    weight_files,
)
from .report import Report


PART = "files"
# What training leaves beside a model, and frameworks write for themselves.
LEFTOVERS = (
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin"),
    *("global_step*", "latest", "zero_to_fp32.py", "pytorch_model_fsdp_*", "*.tmp", "*.part", "*.aria2"),
)
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")


def check_files(folder: Path, report: Report) -> None:
    """Report pointers, damaged and missing files as errors, code and leftovers as notes."""
    is_adapter = False
    if not (folder / "config.json").is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        if is_adapter:
            report.error(
                PART,
                "it is an adapter, not a model: adapter_config.json, but no config.json",
                "check the model that it names as its base; load both with PEFT, or merge them: baichuan-hf merge"
                f" {folder} DST",
            )
        else:
            report.error(PART, "config.json is missing", "copy it from the model that this one was made from")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pointers = [path for path in files if is_lfs_pointer(path)]
    for path in pointers:
        report.error(PART, *_halves(lfs_pointer_message(path)))
    for problem in find_problems(folder):
        # The first of several reasons is enough; a pointer has been named.
        if not any(str(path) in problem for path in pointers):
            report.error(PART, *_halves(problem))

    first = first_weight_file(folder)
    if first is not None and not report.has_errors(PART):
        _note_what_is_read(first, report)
    if first is None and not is_adapter:
        report.error(
            PART,
            f"there are no weights: none of {', '.join(WEIGHT_FILES)}",
            "download the folder again, or save the model anew with save_pretrained",
        )
    _note_leftovers(folder, files, report)


def _note_what_is_read(first: Path, report: Report) -> None:
    folder = first.parent
    read = {first.name, *(file.name for file in weight_files(folder))}
    if not first.name.startswith("model"):
        report.note(
            PART,
            f"the weights are pickled ({first.name}): slower to read, and unsafe in the hands of other tools",
            f"baichuan-hf convert {folder} DST --to baichuan",
        )
    others = {path.name for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)}
    leftovers = {path.name for pattern in LEFTOVERS for path in folder.glob(pattern)}
    if unread := sorted(others - read - leftovers):
        more = f" and {len(unread) - 4} more" if len(unread) > 4 else ""
        report.note(
            PART,
            f"weights that are not read, because {first.name} is: {', '.join(unread[:4])}{more}",
            "delete them, if they are of an earlier save",
        )


def _note_leftovers(folder: Path, files: list[Path], report: Report) -> None:
    if code := [path.name for path in files if path.suffix == ".py" and path.name != "zero_to_fp32.py"]:
        report.note(
            PART,
            f"code that is never run with `import baichuan_hf`: {', '.join(code)}",
            "delete it, or keep it for tools that ask for trust_remote_code",
        )
    leftovers = sorted({path for pattern in LEFTOVERS for path in folder.glob(pattern)})
    if leftovers:
        size = sum(path.stat().st_size for path in leftovers if path.is_file())
        report.note(
            PART,
            f"left over from training or a download, {size / 1e6:,.1f} MB:"
            f" {', '.join(path.name for path in leftovers)}",
            "delete them, unless training is to be resumed",
        )


def _halves(message: str) -> tuple[str, str]:
    """What is wrong, and the way out: the last sentence of a message of `checkpoint_files`."""
    what, _, way_out = message.rpartition(". ")
    return what, way_out
