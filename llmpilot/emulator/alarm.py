"""One alarm at an absolute time of the monotonic clock, far finer than asyncio's own timers.

epoll rounds a timeout up to the next millisecond, which alone would make the median token half a
millisecond late; a Linux timerfd is exact. Elsewhere, and where it is missing, asyncio's timer is taken.
A core that slept for long takes some tenths of a millisecond to wake up: before a long wait the alarm is
set early, and the rest of it is spent awake.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from time import monotonic_ns

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = 0o4000 | 0o2000000  # non-blocking, closed on exec
_TFD_ABSOLUTE = 1
_SECOND_NS = 1_000_000_000
_LONG_WAIT_NS = 2_000_000
_AWAKE_NS = 300_000


class _TimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Alarm:
    """Calls `ring` once the time that was `set` has come. Belongs to one event loop; must be closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._spec = _TimerSpec()
        self._libc, self._fd = _open_timerfd()
        if self._fd >= 0:
            loop.add_reader(self._fd, self._rang)

    def set(self, due_ns: int) -> None:
        """Ring at `due_ns` of the monotonic clock, at once where that is past; replaces an earlier time."""
        wait_ns = due_ns - monotonic_ns()
        self._due_ns = due_ns
        if wait_ns > _LONG_WAIT_NS:
            wait_ns -= _AWAKE_NS
            due_ns -= _AWAKE_NS
        if self._fd >= 0:
            self._spec.first_s, self._spec.first_ns = divmod(max(due_ns, 1), _SECOND_NS)
            self._libc.timerfd_settime(self._fd, _TFD_ABSOLUTE, ctypes.byref(self._spec), None)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0, wait_ns) / _SECOND_NS, self._wake)

    def close(self) -> None:
        """Forget the alarm and free its file descriptor."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _rang(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew between ringing and reading
            return
        self._wake()

    def _wake(self) -> None:
        due_ns = self._due_ns
        if due_ns - monotonic_ns() <= _AWAKE_NS:
            while monotonic_ns() < due_ns:
                pass
        self._ring()


def _open_timerfd() -> tuple[ctypes.CDLL, int]:
    libc = ctypes.CDLL(None) if sys.platform != "win32" else ctypes.cdll.msvcrt
    if sys.platform != "linux" or not hasattr(libc, "timerfd_create"):
        return libc, -1
    return libc, int(libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS))
