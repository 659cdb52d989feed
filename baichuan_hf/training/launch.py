"""Training by many processes: the configurations of `accelerate launch` that come with the package, and the end."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState


LAUNCH_CONFIGS = {file.stem: file for file in sorted(Path(__file__).with_name("accelerate").glob("*.yaml"))}


def launch_config(name: str) -> Path:
    """The file to give to `accelerate launch --config_file`. Raises ValueError naming those that there are."""
    if name not in LAUNCH_CONFIGS:
        raise ValueError(f"--launch-config {name!r}: unknown; there is {', '.join(LAUNCH_CONFIGS)}")
    return LAUNCH_CONFIGS[name]


def leave_group() -> None:
    """End the group of processes of a run, as NCCL asks for.

    Not gloo's, which ends with the process: what ends it would wait, holding Python's lock, for its thread, which may
    wait for the lock to let go of the last tensor.
    """
    state = PartialState()
    if "nccl" in (state.backend or ""):
        state.destroy_process_group()
