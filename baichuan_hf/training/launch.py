"""The configurations of `accelerate launch` that come with the package."""

from pathlib import Path


LAUNCH_CONFIGS = {file.stem: file for file in sorted(Path(__file__).with_name("accelerate").glob("*.yaml"))}


def launch_config(name: str) -> Path:
    """The file to give to `accelerate launch --config_file`. Raises ValueError naming those that there are."""
    if name not in LAUNCH_CONFIGS:
        raise ValueError(f"--launch-config {name!r}: unknown; there is {', '.join(LAUNCH_CONFIGS)}")
    return LAUNCH_CONFIGS[name]
