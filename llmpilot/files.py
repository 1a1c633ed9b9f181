"""Files that are either whole or absent: written beside their place and moved into it."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpilot.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; move it to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Return JSON as all of our files hold it: indented, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_result(path: str | Path, result: Any) -> None:
    """Write a task's result where the user asked for it.

    Raises:
        ConfigError: the place cannot be written.
    """
    try:
        write_text(Path(path), to_json(result))
    except OSError as error:
        raise ConfigError(
            f"result_file cannot be written: {error.strerror}", given=path, cure="name a writable path"
        ) from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
