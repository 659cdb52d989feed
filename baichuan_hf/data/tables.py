"""Rows from files, folders and the Hub, through `datasets`."""

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset


READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
# A cell is taken literally, and a text file is read whole, to be divided at its blank lines.
READER_OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False}, "text": {"sample_by": "document"}}

# One fixed seed: runs that differ in `--seed` are still measured on the same rows.
SPLIT_SEED = 42


def load_splits(source: str, *, streaming: bool = False) -> DatasetDict:
    """Every split of a file (one split, `train`), of a folder of such files, or of a data set on the Hub.

    With `streaming` the splits are read while they are iterated over, and never held as a whole.

    A cell of a CSV file is taken literally: "NA" and "None" are text, and an empty cell is the empty string. A text
    file has the column `text`, a row for what stands between blank lines.
    Raises FileNotFoundError or ValueError naming the source and what it may be.
    """
    path = Path(source).expanduser()
    allowed = " ".join(READERS)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"{source}: unknown extension {path.suffix!r}; a data file is one of {allowed}")
        if not path.stat().st_size:
            raise ValueError(f"{source}: is empty; give a file with rows")
        reader = READERS[path.suffix.lower()]
        arguments = {"path": reader, "data_files": {"train": str(path)}, **READER_OPTIONS.get(reader, {})}
        if streaming and reader == "text":
            arguments["sample_by"] = "paragraph"  # one at a time, of a file that may be larger than the memory
    elif path.is_dir():
        arguments = {"path": str(path)}
    elif path.suffix.lower() in READERS or path.is_absolute() or source.count("/") > 1:
        raise FileNotFoundError(f"{source}: no such file (looked in {path.parent.resolve()})")
    else:
        arguments = {"path": source}
    try:
        splits = datasets.load_dataset(**arguments, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{source}: neither a file or folder here ({allowed}) nor a data set that the Hub would give: {error}"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        hint = "; save the file as UTF-8" if isinstance(cause, UnicodeDecodeError) else ""
        if "corresponds to no data" in str(cause):
            raise ValueError(f"{source}: has no rows") from error
        raise ValueError(f"{source}: cannot be read: {cause}{hint}") from error
    if arguments["path"] == "text":
        shown = {} if streaming else {"desc": "Dividing at blank lines"}
        splits = splits.map(_paragraphs, batched=True, **shown)
    return splits


def _paragraphs(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    parts = (part for text in batch["text"] for part in re.split(r"\n\s*\n", text.strip("\n")))
    return {"text": [part for part in parts if part.strip()]}


def load_train_and_test(
    train_file: str, eval_file: str | None = None, *, load: Callable[[str], DatasetDict] = load_splits
) -> DatasetDict:
    """`train`, and `test` if there is one: the rows of `eval_file`, else the source's own validation or test split."""
    splits = load(train_file)
    if "train" not in splits:
        raise ValueError(f"{train_file}: has no split `train`; there are {', '.join(splits)}")
    others = load(eval_file) if eval_file else {name: splits[name] for name in splits if name != "train"}
    chosen = DatasetDict(train=splits["train"])
    for name in ("validation", "test", "train"):
        if name in others:
            chosen["test"] = others[name]
            break
    return chosen


def column_names(rows: Dataset | IterableDataset) -> list[str]:
    """The columns there are; those of a stream may be known from its first row only."""
    return rows.column_names or list(next(iter(rows), {}))


def in_memory(rows: Dataset | IterableDataset, desc: str, num_proc: int | None = None) -> dict[str, Any]:
    """Options of `rows.map` and `rows.filter` that a stream does not take: the bar's text, and how many processes."""
    return {} if isinstance(rows, IterableDataset) else {"desc": desc, "num_proc": num_proc}


def require_columns(rows: Dataset | IterableDataset, columns: dict[str, str], source: str) -> None:
    """`columns` maps the option that names a column to that name; raises ValueError listing the columns there are."""
    found = column_names(rows)
    for option, name in columns.items():
        if name not in found:
            there = ", ".join(map(repr, found))
            raise ValueError(f"{source}: {option} {name!r} is not a column; there are {there}")


def hold_out(rows: Dataset, fraction: float, *, by: str | None = None) -> DatasetDict:
    """Split `rows` into `train` and `test`, if told with equal shares of every class of the ClassLabel column `by`.

    The same rows, order and fraction always give the same split; the number of `test` is rounded up. Raises ValueError
    for what cannot be split so.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--eval-fraction is {fraction}; it must lie between 0 and 1 (0 turns evaluation off)")
    held_out = math.ceil(len(rows) * fraction)
    instead = "give --eval-file, or --eval-fraction 0 to train without evaluation"
    if by is None:
        if held_out >= len(rows):
            raise ValueError(f"--eval-fraction {fraction} of {len(rows)} rows leaves none to train on; {instead}")
        return rows.train_test_split(test_size=held_out, seed=SPLIT_SEED)
    names = rows.features[by].names
    counts = Counter(rows[by])
    if rare := [names[index] for index, count in counts.items() if count < 2]:
        raise ValueError(f"label {rare[0]!r} has one row, too few to hold out a share of every label; {instead}")
    if not len(counts) <= held_out <= len(rows) - len(counts):
        raise ValueError(
            f"--eval-fraction {fraction} of {len(rows)} rows leaves one side fewer rows than labels, {len(counts)}"
        )
    return rows.train_test_split(test_size=held_out, seed=SPLIT_SEED, stratify_by_column=by)
