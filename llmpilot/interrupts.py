"""Ctrl-C and SIGTERM: raised as KeyboardInterrupt, and remembered where a library swallows that."""

import signal
from threading import Event
from types import FrameType

_requested = Event()


def install() -> None:
    """Let SIGINT and SIGTERM interrupt this process; forget earlier ones."""
    _requested.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def check() -> None:
    """Raise KeyboardInterrupt if one was asked for, whoever has caught it since."""
    if _requested.is_set():
        raise KeyboardInterrupt


def acknowledge() -> None:
    """The interruption has been heard: what tidies up after it must not be interrupted by it again."""
    _requested.clear()


def _handle(_signal: int, _frame: FrameType | None) -> None:
    _requested.set()
    raise KeyboardInterrupt
