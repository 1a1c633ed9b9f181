"""Pages for people (HTML), as proxies and gateways answer in place of a service: what they say."""

import html
import re

_UNSEEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|svg|noscript)\b.*?(?:</\1\s*>|\Z)|<[^>]*>?", re.IGNORECASE | re.DOTALL
)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_BEGINNINGS = ("<!doctype html", "<html", "<head", "<body")


def is_page(text: str) -> bool:
    """Whether a body is a page for people: HTML."""
    return text.lstrip("\ufeff \t\r\n")[:15].lower().startswith(_BEGINNINGS)


def readable(text: str) -> str:
    """Return what a server said as a person reads it: of a page its words, also behind `text/html: `."""
    if is_page(text):
        return words_of(text)
    before, separator, rest = text.partition(": ")
    return f"{before}: {words_of(rest)}" if separator and is_page(rest) else text


def words_of(page: str) -> str:
    """Return what a person reads on a page: its title, then its text."""
    title = _TITLE.search(page)
    text = _plain(_TITLE.sub(" ", page))
    if title is None:
        return text
    heading = _plain(title[1])
    if text.startswith(heading):
        return text
    return f"{heading}: {text}" if text else heading


def _plain(marked: str) -> str:
    return " ".join(html.unescape(_UNSEEN.sub(" ", marked)).split())
