"""Who we are to a service: its API key, the user of its URL, and headers of one's own. Shows none of them."""

import os
import re
from base64 import b64encode
from collections.abc import Mapping

from llmpilot.deploy.trouble import ServiceError
from llmpilot.secrets import REFERENCE, is_secret_name, remember

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OURS = ("content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer")
"""Headers of the connection itself, which only the client can know."""
WELL_KNOWN = ("accept", "accept-encoding", "accept-language", "content-type", "user-agent", "host")
"""Headers whose values are no secrets, and words that other texts may well have."""


def own_headers(given: Mapping[str, str]) -> dict[str, str]:
    """Return headers, `env:NAME` replaced by that variable; their values are shown nowhere from now on.

    Raises:
        ServiceError: a variable is not there, or a name or value is none of HTTP's.
    """
    headers = {name: _value(name, value) for name, value in given.items()}
    for name, value in headers.items():
        if name.lower() not in WELL_KNOWN:
            remember([value, value.partition(" ")[2]])
        if name.lower() == "cookie":
            remember(pair.partition("=")[2].strip() for pair in value.split(";"))
    return headers


def authorization(key_variable: str, user: str) -> dict[str, str]:
    """Return the header that says who we are: the API key, else the user and password of the URL.

    Raises:
        ServiceError: the key has characters that no key has.
    """
    if key := os.environ.get(key_variable, "").strip():  # of a mounted secret, a newline is no part
        if not _is_plain(key):
            raise ServiceError(
                f"the API key in ${key_variable} (not shown) is not all printable ASCII",
                cure=f"export {key_variable}=..., the key alone, on one line",
            )
        remember([key])
        return {"Authorization": f"Bearer {key}"}
    if user:
        pair = b64encode(user.encode()).decode()
        remember([pair, user.partition(":")[2]])
        return {"Authorization": f"Basic {pair}"}
    return {}


def together(own: Mapping[str, str], authorization: Mapping[str, str]) -> dict[str, str]:
    """Return all headers; one's own replace ours."""
    given = {name.lower() for name in own}
    return {name: value for name, value in authorization.items() if name.lower() not in given} | dict(own)


def has_key(headers: Mapping[str, str]) -> bool:
    """Whether one of these headers is an API key by its name: `api-key`, `Ocp-Apim-Subscription-Key`."""
    return any(is_secret_name(name) for name in headers)


def _value(name: str, given: str) -> str:
    key = f"deployment.headers.{name}"
    if not NAME.fullmatch(name):
        raise ServiceError(
            "deployment.headers has a name that is none of an HTTP header",
            given=repr(name),
            cure="write it in letters, digits and hyphens: deployment.headers.api-key=env:MY_KEY",
        )
    if name.lower() in OURS:
        raise ServiceError(f"{key} cannot be set: the client itself says how it sends", cure="leave it out")
    value = given.strip()
    if value.startswith(REFERENCE):
        variable = value.removeprefix(REFERENCE).strip()
        if not VARIABLE.fullmatch(variable):
            raise ServiceError(
                f"{key} names no variable of the environment behind env: (not shown)",
                cure=f"{key}=env:MY_KEY, the name of the variable",
            )
        value = os.environ.get(variable, "").strip()
        if not value:
            raise ServiceError(
                f"{key} is to be read from ${variable}, which is not set, or empty",
                cure=f"export {variable}=...",
            )
    if not _is_plain(value):
        raise ServiceError(
            f"the value of {key} (not shown) is not all printable ASCII, on one line",
            cure="give the value alone; one with other characters cannot be sent",
        )
    return value


def _is_plain(text: str) -> bool:
    return text.isascii() and (text.isprintable() or not text)
