"""Lets a deployment be typed as people have it: URLs with a query as they are, headers by their own names.

Hydra takes neither: `=` and `&` in a value want quotes, and a header is a key that is not there before.
"""

import re
from collections.abc import Sequence

from llmpilot.sla_overrides import FORCED

URL, HEADERS = "deployment.url", "deployment.headers"
_PLAIN = re.compile(r"[\w.:/+@%~-]*", re.ASCII)
"""What needs no quotes; a comma, which parts the cells of a sweep, is not among it."""
_SEVERAL = re.compile(r",\s*https?://")


def as_hydra_takes_it(arguments: Sequence[str]) -> list[str]:
    """Return the command line with the URLs and headers of deployments as overrides that Hydra takes."""
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    return [_as_hydra_takes_it(argument, sweep=sweep) for argument in arguments]


def _as_hydra_takes_it(argument: str, *, sweep: bool) -> str:
    key, given, value = argument.partition("=")
    name = key.lstrip("+")
    if not given or (name not in (URL, HEADERS) and not name.startswith(f"{HEADERS}.")):
        return argument
    if not value.startswith(("'", '"', "[", "{", "glob(", "choice(")) and "${" not in value:
        # Without a sweep a comma is the text's own, unless it looks as if -m was forgotten.
        parts = value.split(",") if sweep or _SEVERAL.search(value) else [value]
        value = ",".join(part if _PLAIN.fullmatch(part) else _quoted(part) for part in parts)
    return f"{key if name == URL else FORCED + name}={value}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
