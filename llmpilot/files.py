"""Files that are either whole or absent: written beside their place and moved into it."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any

from llmpilot.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; move it to `path` when the block ends without an error.

    A device or a pipe (/dev/null, /dev/stdout) is written to, and never replaced.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory(prefix="llmpilot-") as folder:
            beside = Path(folder) / "content"
            yield beside
            path.write_bytes(beside.read_bytes())
        return
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


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Return JSON as all of our files hold it: indented, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def require_writable(path: str | Path, key: str = "result_file") -> None:
    """Check before the work that its result can be written; `key` is what names the place.

    Raises:
        ConfigError: `path` is a folder, or lies where nothing can be written.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        if _is_stream(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
            return
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(path, error, key) from None


def require_apart(kept: Mapping[str, str | Path], written: Mapping[str, str | Path]) -> None:
    """Check before the work that what it writes spares what is there to be read, and itself.

    Both are the configuration's key -> path, or what is made of a key's path -> that, with the key as the
    last word. Of `kept` several may be one file.

    Raises:
        ConfigError: a file of `written` is one of `kept`, or named twice.
    """
    taken = {_resolved(path): key for key, path in kept.items()}
    for key, path in written.items():
        place = _resolved(path)
        if place in taken:
            cure = f"set {key.split()[-1]}=<another path>"
            raise ConfigError(f"{key} would overwrite {taken[place]}", given=path, cure=cure)
        taken[place] = key


def _resolved(path: str | Path) -> str:
    # These functions of os.path take any text; those of pathlib raise of unknown users and loops of links.
    return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111


def write_result(path: str | Path, result: Any, key: str = "result_file") -> None:
    """Write a task's result where the user asked for it, by `key`.

    Raises:
        ConfigError: the place cannot be written.
    """
    try:
        write_text(Path(path), to_json(result))
    except OSError as error:
        raise _not_writable(path, error, key) from None


def _not_writable(path: str | Path, error: OSError, key: str) -> ConfigError:
    return ConfigError(f"{key} cannot be written: {error.strerror}", given=path, cure="name a writable path")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
