"""Keeps secrets out of everything that is written: runs, logs, messages and result files."""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

HIDDEN = "***"
REFERENCE = "env:"
"""How a header's value begins that names a variable of the environment; the name is no secret."""
_SHORTEST = 6
_SHORTEST_GIVEN = 3
"""Of a value that stands at a secret's place in the configuration, and so surely is one."""
_SHORTEST_PART = 4
"""Of a secret's beginning at the end of a text that was cut."""
_NOT_SECRET = {"PWD", "OLDPWD"}
# A key of the configuration: `api_key`, `deployment.token`; but not `input_tokens` or `api_key_env`.
_SECRET_KEY = re.compile(
    r"(^|[._-])(api[_-]?key|key|token|secret|password|passwd|credentials?|authorization|bearer|cookie)$",
    re.IGNORECASE,
)
# Headers are secrets one and all: what a gateway calls its key, only its owner knows.
_HEADERS = re.compile(r"(^|\.)headers(\.|$)")
# A variable of the environment: any part of its name (HF_TOKEN_READ, GH_PAT, PGPASSWORD).
_SECRET_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PAT|PWD|CREDENTIALS?|AUTHORIZATION|BEARER)(_|$)|PASSWORD|PASSWD",
    re.IGNORECASE,
)
# Also without a scheme, as proxies are given: me:password@host:3128.
_URL_USER = re.compile(r"(?<=://)[^\s'\"]*@|(?<![\w/@.])[^\s'\"/@:=]+:[^\s'\"/@]+@(?=[\w.-]+:\d)")
_URL_QUERY = re.compile(
    r"([?&][\w-]*(?:key|token|secret|password|passwd|signature|sig|code|auth|credentials?)=)[^&\s'\"]+",
    re.IGNORECASE,
)
# The URL of a service: what a gateway calls the key in its query, only its owner knows.
_URL_NAME = re.compile(r"(^|\.)url$")
_QUERY_VALUE = re.compile(r"(?<=[?&])((?!api-version=)[^=&\s'\"]+=)([^&\s'\"#]+)")
# A proxy is known by its place in the configuration, without a scheme and a port, too: me:password@proxy.
_PROXY_NAME = re.compile(r"(^|\.)proxy$")
_PROXY_USER = re.compile(r"""((?:choice\()?['"]?(?:\w+://)?)(.*)@""", re.DOTALL)
_IN_BRACES = re.compile(r":\s*('[^']*'|\"[^\"]*\"|[^,}]+)")
_GAP = r"[\s\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060-\u2069\ufeff]*"
"""Between two characters of a secret that somebody has broken over lines, or drawn apart."""
_met: set[str] = set()


def remember(values: Iterable[str]) -> None:
    """Have `redact` hide these values in everything that this process shows from now on."""
    _met.update(value for value in values if len(value) >= _SHORTEST)


def remembered() -> tuple[str, ...]:
    """Return what `remember` was told, for another process of ours."""
    return tuple(_met)


def is_secret_name(name: str) -> bool:
    """Whether a key of the configuration by this name holds a secret."""
    return _SECRET_KEY.search(name) is not None or _HEADERS.search(name) is not None


def redact(text: str, extra: tuple[str, ...] = ()) -> str:
    """Return `text` without the values of secret environment variables, `extra` ones, and those in URLs."""
    for value in _known(extra):
        text = text.replace(value, HIDDEN)
    return _in_urls(text)


def redact_foreign(text: str) -> str:
    """Return a text of others without our secrets, however they write them, and though it may be cut.

    A server may repeat a key as JSON or a URL escapes it, or over several lines; of one that the text's end
    cuts off, the beginning is hidden too.
    """
    known = _known(())
    for value in known:
        text = _however_written(value).sub(HIDDEN, text)
    for value in known:
        for length in range(min(len(value) - 1, len(text)), _SHORTEST_PART - 1, -1):
            if text.endswith(value[:length]):
                text = text[:-length] + HIDDEN
                break
    return _in_urls(text)


def redact_tree(value: Any, name: str = "") -> Any:
    """Return nested configuration values with every secret hidden."""
    if isinstance(value, dict):
        return {key: redact_tree(item, _below(name, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_tree(item, name) for item in value]
    if value and is_secret_name(name) and _may_be_secret(value, name):
        return HIDDEN
    if isinstance(value, str):
        return _without_keys(redact(value), name)
    return value


def secret_values(value: Any, name: str = "") -> tuple[str, ...]:
    """Return the secrets that a configuration holds, to be hidden in messages."""
    if isinstance(value, dict):
        return tuple(found for key, item in value.items() for found in secret_values(item, _below(name, key)))
    if _URL_NAME.search(name):
        return tuple(found[2] for found in _QUERY_VALUE.finditer(str(value)))
    if _PROXY_NAME.search(name):
        user = found[2] if (found := _PROXY_USER.match(str(value))) else ""
        return tuple(part for part in (user, user.partition(":")[2]) if part)
    if not (is_secret_name(name) and _may_be_secret(value, name)):
        return ()
    text = str(value)
    # On a command line, headers may be a mapping: deployment.headers={api-key: xyz}.
    parts = _IN_BRACES.findall(text) if _HEADERS.search(name) and text.startswith("{") else [text]
    bare = (part.strip().strip("'\"") for part in parts)
    return tuple(part for part in bare if part and not part.startswith(REFERENCE))


def hide_argument(argument: str) -> str:
    """Return one argument of a command line as it may be shown: without the value of a secret."""
    key, given, value = argument.partition("=")
    name = key.lstrip("+~")
    if _URL_NAME.search(name) or _PROXY_NAME.search(name):
        value = _without_keys(value, name)
    else:
        for secret in sorted(secret_values({name: value}), key=len, reverse=True):  # however short it is
            value = value.replace(secret, HIDDEN)
    return redact(key + given + value)


def _without_keys(value: str, name: str) -> str:
    """Return a text of the configuration without what its place makes a secret in a URL."""
    if _URL_NAME.search(name):
        return _QUERY_VALUE.sub(rf"\g<1>{HIDDEN}", value)
    return _PROXY_USER.sub(rf"\g<1>{HIDDEN}@", value) if _PROXY_NAME.search(name) else value


def _below(name: str, key: Any) -> str:
    """Return the name of a value: its own key, or below headers all of it."""
    return f"{name}.{key}" if _HEADERS.search(name) else str(key)


def _may_be_secret(value: Any, name: str) -> bool:
    if _HEADERS.search(name):
        return value is not None and not str(value).startswith(REFERENCE)
    return isinstance(value, str)


def _known(extra: tuple[str, ...]) -> list[str]:
    """Return all secrets, the longest first: one may be a part of another."""
    values = {
        value.strip()  # a mounted secret may end in a newline, which is not sent
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and name not in _NOT_SECRET
    }
    known = {value for value in values | _met if len(value) >= _SHORTEST}
    known |= {value for value in extra if len(value) >= _SHORTEST_GIVEN}
    return sorted(known, key=len, reverse=True)


def _in_urls(text: str) -> str:
    return _URL_QUERY.sub(rf"\g<1>{HIDDEN}", _URL_USER.sub(f"{HIDDEN}@", text))


@lru_cache(maxsize=256)
def _however_written(secret: str) -> re.Pattern[str]:
    """Return what finds a secret as it is, as JSON or a URL escapes it, or with blanks in it."""
    return re.compile(_GAP.join(map(_one_character, secret)))


def _one_character(character: str) -> str:
    code = ord(character)
    ways = [rf"\\{re.escape(character)}", re.escape(character), rf"\\u(?i:{code:04x})"]
    ways += [rf"(?i:{''.join(f'%{byte:02x}' for byte in character.encode())})"]
    return f"(?:{'|'.join(ways)})"
