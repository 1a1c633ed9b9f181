"""Keeps secrets out of everything that is written: runs, logs, messages and result files."""

import os
import re
from typing import Any

HIDDEN = "***"
_SHORTEST = 6
_NOT_SECRET = {"PWD", "OLDPWD"}
# A key of the configuration: `api_key`, `deployment.token`; but not `input_tokens` or `api_key_env`.
_SECRET_KEY = re.compile(
    r"(^|[._-])(api[_-]?key|key|token|secret|password|passwd|credentials?|authorization|bearer)$",
    re.IGNORECASE,
)
# A variable of the environment: any part of its name (HF_TOKEN_READ, GH_PAT, PGPASSWORD).
_SECRET_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PAT|PWD|CREDENTIALS?|AUTHORIZATION|BEARER)(_|$)|PASSWORD|PASSWD",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^\s'\"]*@")
_URL_QUERY = re.compile(
    r"([?&][\w-]*(?:key|token|secret|password|passwd|signature|sig)=)[^&\s'\"]+", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether a key of the configuration by this name holds a secret."""
    return _SECRET_KEY.search(name) is not None


def redact(text: str, extra: tuple[str, ...] = ()) -> str:
    """Return `text` without the values of secret environment variables, `extra` ones, and those in URLs."""
    values = [
        value.strip()  # a mounted secret may end in a newline, which is not sent
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and name not in _NOT_SECRET
    ]
    for value in sorted({*values, *extra}, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    return _URL_QUERY.sub(rf"\g<1>{HIDDEN}", _URL_USER.sub(f"{HIDDEN}@", text))


def redact_tree(value: Any, name: str = "") -> Any:
    """Return nested configuration values with every secret hidden."""
    if isinstance(value, dict):
        return {key: redact_tree(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_tree(item, name) for item in value]
    if isinstance(value, str):
        return HIDDEN if value and is_secret_name(name) else redact(value)
    return value


def secret_values(value: Any, name: str = "") -> tuple[str, ...]:
    """Return the secrets that a configuration holds, to be hidden in messages."""
    if isinstance(value, dict):
        return tuple(found for key, item in value.items() for found in secret_values(item, str(key)))
    return (value,) if isinstance(value, str) and is_secret_name(name) else ()
