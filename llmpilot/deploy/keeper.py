"""Keeps a server from outliving us. Run as a program: `keeper.py GRACE_S COMMAND...`, standard library only.

Starts the command in a session of its own, and stops everything in it once standard input ends: when we
close it, and as well when we crash or are killed. Exits as the command did (128 + signal, as shells say it).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(grace_s: float, command: list[str]) -> int:
    """Run the command to its end, or to the end of standard input."""
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_keeper,  # noqa: PLW1509 - no other thread has begun
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _signal(server.pid, signal.SIGTERM))
    threading.Thread(target=_stop_at_hang_up, args=(server.pid, grace_s, ended), daemon=True).start()
    code = server.wait()
    ended.set()
    _signal(server.pid, signal.SIGKILL)  # what it has left behind
    return code if code >= 0 else 128 - code


def _stop_at_hang_up(group: int, grace_s: float, ended: threading.Event) -> None:
    os.read(0, 1)
    _signal(group, signal.SIGTERM)
    if not ended.wait(grace_s):
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _die_with_keeper() -> None:
    """Let the kernel kill the server, should even this process be killed; Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
