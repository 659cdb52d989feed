"""Small checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path


def bundled_checkpoint(name: str = "tiny") -> Path:
    """The folder of a checkpoint that comes with the package, for `from_pretrained`.

    Raises:
        ValueError: there is none of that name.
    """
    root = Path(__file__).parent
    names = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"There is no bundled checkpoint {name!r}; there are {', '.join(names)}.")
    return root / name


def resolve_model(name: str) -> str:
    """What to hand to `from_pretrained` for a model that a user names: `tiny` is the bundled one, all else is a folder
    or a name on the Hub. A model of that name in the working directory comes first.

    Raises:
        FileNotFoundError: there is no such folder, and it can be no name on the Hub.
    """
    if not Path(name).exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{name}: no such folder, and no name of a model on the Hub, which is owner/name.")
    bundled = Path(__file__).parent / name
    is_bundled = (bundled / "config.json").is_file() and not (Path(name) / "config.json").is_file()
    return str(bundled) if is_bundled else name
