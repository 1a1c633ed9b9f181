"""Ctrl-C and SIGTERM: raised as KeyboardInterrupt, and remembered where a library swallows that."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType

EXIT_CODE = 130
"""Of a process that was interrupted, as shells have it: 128 and the number of SIGINT."""
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


def acknowledge() -> bool:
    """The interruption has been heard: what tidies up after it must not be interrupted by it again.

    Whoever does so tells the user; returns whether nobody else had.
    """
    fresh = _requested.is_set()
    _requested.clear()
    return fresh


@contextmanager
def held() -> Iterator[None]:
    """Let an interruption wait until what is done here is done: starting processes, which must not be lost.

    Such processes inherit that SIGINT is held back: a terminal's Ctrl-C reaches this process alone.
    """
    if current_thread() is not main_thread():
        yield
        return
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Held back from this thread, a signal may still reach another one, and its handler would run in this.
    before = [signal.signal(number, lambda number, _frame: heard.append(number)) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _handle(_signal: int, _frame: FrameType | None) -> None:
    _requested.set()
    raise KeyboardInterrupt
