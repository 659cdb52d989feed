"""Rows from files, folders and the Hub, through `datasets`."""

from collections import Counter
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict


READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}

# One fixed seed: runs that differ in `--seed` are still measured on the same rows.
SPLIT_SEED = 42


def load_splits(source: str) -> DatasetDict:
    """Every split of a file (one split, `train`), of a folder of such files, or of a data set on the Hub.

    A cell of a CSV file is taken literally: "NA" and "None" are text, and an empty cell is the empty string.
    Raises FileNotFoundError or ValueError naming the source and what it may be.
    """
    path = Path(source).expanduser()
    allowed = " ".join(READERS)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"{source}: unknown extension {path.suffix!r}; a data file is one of {allowed}")
        reader = READERS[path.suffix.lower()]
        options = {"keep_default_na": False} if reader == "csv" else {}
        arguments = {"path": reader, "data_files": {"train": str(path)}, **options}
    elif path.is_dir():
        arguments = {"path": str(path)}
    elif path.suffix.lower() in READERS or path.is_absolute() or source.count("/") > 1:
        raise FileNotFoundError(f"{source}: no such file (looked in {path.parent.resolve()})")
    else:
        arguments = {"path": source}
    try:
        return datasets.load_dataset(**arguments)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{source}: neither a file or folder here ({allowed}) nor a data set that the Hub would give: {error}"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        hint = "; save the file as UTF-8" if isinstance(cause, UnicodeDecodeError) else ""
        raise ValueError(f"{source}: cannot be read: {cause}{hint}") from error


def load_train_and_test(train_file: str, eval_file: str | None = None) -> DatasetDict:
    """`train`, and `test` if there is one: the rows of `eval_file`, else the source's own validation or test split."""
    splits = load_splits(train_file)
    if "train" not in splits:
        raise ValueError(f"{train_file}: has no split `train`; there are {', '.join(splits)}")
    others = load_splits(eval_file) if eval_file else {name: splits[name] for name in splits if name != "train"}
    chosen = DatasetDict(train=splits["train"])
    for name in ("validation", "test", "train"):
        if name in others:
            chosen["test"] = others[name]
            break
    return chosen


def require_columns(rows: Dataset, columns: dict[str, str], source: str) -> None:
    """`columns` maps the option that names a column to that name; raises ValueError listing the columns there are."""
    for option, name in columns.items():
        if name not in rows.column_names:
            there = ", ".join(map(repr, rows.column_names))
            raise ValueError(f"{source}: {option} {name!r} is not a column; there are {there}")


def hold_out(rows: Dataset, fraction: float, *, by: str) -> DatasetDict:
    """Split `rows` into `train` and `test` with equal shares of every class of the ClassLabel column `by`.

    The same rows, order and fraction always give the same split.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--eval-fraction is {fraction}; it must lie between 0 and 1 (0 turns evaluation off)")
    names = rows.features[by].names
    counts = Counter(rows[by])
    if rare := [names[index] for index, count in counts.items() if count < 2]:
        raise ValueError(
            f"label {rare[0]!r} has one row, too few to hold out a share of every label; "
            "give --eval-file, or --eval-fraction 0 to train without evaluation"
        )
    held_out = round(len(rows) * fraction)
    if not len(counts) <= held_out <= len(rows) - len(counts):
        raise ValueError(
            f"--eval-fraction {fraction} of {len(rows)} rows leaves one side fewer rows than labels, {len(counts)}"
        )
    return rows.train_test_split(test_size=fraction, seed=SPLIT_SEED, stratify_by_column=by)
