"""Keeps secrets out of everything that is written: runs, logs, messages and result files."""

import os
import re
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(^|[._-])(api[_-]?key|key|token|secret|password|passwd|credentials?|authorization|bearer)$",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/\s@]+@")
_SHORTEST = 6


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of this name holds a secret (`HF_TOKEN`, `deployment.api_key`)."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, extra: tuple[str, ...] = ()) -> str:
    """Return `text` without the values of secret environment variables, `extra` ones, and URL passwords."""
    values = [value for name, value in os.environ.items() if is_secret_name(name)]
    for value in sorted({*values, *extra}, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    return _URL_USER.sub(f"{HIDDEN}@", text)


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
