"""The URL of a service, as a person may write it. Knows nothing of what answers there."""

from urllib.parse import SplitResult, urlsplit

import httpx

EXAMPLE = "http://127.0.0.1:8000"


def checked(url: str) -> str:
    """Return the URL as requests begin with it: without a slash or `/v1` at its end.

    Raises:
        ValueError: what is wrong with it; a password or key in it is not shown.
    """
    url = url.strip()
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(
            "deployment.url (not shown) has a space or a control character in it: "
            f"write a space of its path as %20, or give a URL such as {EXAMPLE}"
        )
    whole, given = url, f"deployment.url={_without_user(url)}"
    url = url.partition("?")[0].partition("#")[0]
    if url != whole:
        raise ValueError(
            f"deployment.url={_without_user(url)} goes on with a query or a fragment (not shown), which no "
            f"request would carry: leave out what begins with {whole[len(url)]}"
        )
    try:
        parts, port = _split(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError(f"{given} is no URL: {error}; give one such as {EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{given} is no URL of a server: give one such as {EXAMPLE}")
    if port == 0:
        raise ValueError(f"{given} has port 0, which no server has: give one such as {EXAMPLE}")
    if not (parts.hostname + parts.path).isascii():
        raise ValueError(f"{given} is not ASCII: write its path with %, its host as xn--...")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Return the URL's parts and its port, which is looked at nowhere before."""
    parts = urlsplit(url)
    port = parts.port
    httpx.URL(url)
    return parts, port


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}***@{place}" if user or at else url
