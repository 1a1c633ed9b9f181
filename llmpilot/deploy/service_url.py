"""The URL of a service, as a person may paste it. Knows nothing of what answers there."""

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import httpx

EXAMPLE = "http://127.0.0.1:8000"
VERSION = re.compile(r"v\d+\w*")
ENDPOINTS: dict[str, Literal["completions", "chat"] | None] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/models": None,
}
INVOCATIONS = "/invocations"
"""What SageMaker, Databricks and MLflow call the one path of a model that is served."""
HARMLESS = ("api-version",)
"""Parameters of a query that no secret hides in."""
_AZURE = re.compile(r"/deployments/([^/]+)$")


@dataclass(frozen=True)
class ServiceUrl:
    """Where a service answers, taken apart.

    `root` has no user, no slash at its end and no version of the API: metrics are looked for below it.
    `api_paths` are what may follow it before `/completions`, the likeliest first. `api` is the one that was
    pasted with the URL. `may_be_whole` says whether requests may go to `root` itself, as to a path that is
    none of OpenAI's: tried before all others, or behind them, or not at all. `query` goes with every request;
    `user` is "name:password", or "".
    """

    root: str
    api_paths: tuple[str, ...] = ("/v1", "")
    api: Literal["completions", "chat"] | None = None
    may_be_whole: Literal["first", "last", "no"] = "no"
    query: str = field(default="", repr=False)
    user: str = field(default="", repr=False)

    @property
    def deployment(self) -> str | None:
        """The name of the deployment in a URL of Azure OpenAI, by which it calls its model."""
        found = _AZURE.search(self.root)
        return unquote(found[1]) if found else None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What of it must not be shown: the user's name and password, and the values of its query."""
        pairs = (pair.partition("=") for pair in self.query.split("&"))
        values = [value for name, _, value in pairs if name.lower() not in HARMLESS]
        return tuple(
            secret
            for value in [*values, *self.user.split(":", 1)]
            for secret in {value, unquote(value)}
            if secret
        )


def checked(url: str) -> str:
    """Return the URL without what says nothing: blanks around it; a slash, `/v1` or `/v1/models` behind it.

    Raises:
        ValueError: what is wrong with it; a password or key in it is not shown.
    """
    url = url.strip()
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(
            "deployment.url (not shown) has a space or a control character in it: "
            f"write a space of its path as %20, or give a URL such as {EXAMPLE}"
        )
    shown = _to_show(url)
    given = f"deployment.url={shown}"
    if "#" in url:
        raise ValueError(
            f"{given} goes on with a fragment (not shown), which no request would carry: leave out what "
            "begins with #"
        )
    try:
        parts, port = _split(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError(f"{given} is no URL: {error}; give one such as {EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{given} is no URL of a server: give one such as {EXAMPLE}")
    if port == 0:
        raise ValueError(f"{given} has port 0, which no server has: give one such as {EXAMPLE}")
    if not (parts.hostname + parts.path + parts.query).isascii():
        raise ValueError(f"{given} is not ASCII: write its path with %, its host as xn--...")
    path = parts.path.rstrip("/").removesuffix("/v1/models").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def taken_apart(url: str) -> ServiceUrl:
    """Return the parts of a URL that `checked` has returned."""
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    path = parts.path
    api_paths: tuple[str, ...] = ("/v1", "")
    ending = next((ending for ending in ENDPOINTS if path.endswith(ending)), None)
    if ending is not None:
        path = path.removesuffix(ending)
        # Some APIs have a base of that name, below which there is /chat/completions (Azure AI).
        api_paths = ("", ending) if ending == "/models" else ("",)
    may_be_whole: Literal["first", "last", "no"] = "no"
    if ending is None and path:
        may_be_whole = "first" if path.endswith(INVOCATIONS) else "last"
    above, _, last = path.rpartition("/")
    if VERSION.fullmatch(last):
        path, api_paths, may_be_whole = above, (f"/{last}",), "no"
    name, _, password = user.partition(":")
    return ServiceUrl(
        root=f"{parts.scheme}://{place}{path}",
        api_paths=api_paths,
        api=ENDPOINTS[ending] if ending else None,
        may_be_whole=may_be_whole,
        query=parts.query,
        user=f"{unquote(name)}:{unquote(password)}" if user else "",
    )


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Return the URL's parts and its port, which is looked at nowhere before."""
    parts = urlsplit(url)
    port = parts.port
    httpx.URL(url)
    return parts, port


def _to_show(url: str) -> str:
    """Return what may be shown of what was given for a URL: not its user, query or fragment."""
    whole = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = whole.rpartition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}***@{place}" if user or at else whole
