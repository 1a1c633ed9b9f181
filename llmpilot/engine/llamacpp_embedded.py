"""llama.cpp's server embedded in this process through xllamacpp: `python -m ... SETTINGS`, until signalled.

SETTINGS is a JSON object of attributes of xllamacpp's CommonParams, dotted where they are nested.
"""

import functools
import json
import signal
import sys
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    for name, value in settings.items():
        *path, last = name.split(".")
        owner = functools.reduce(getattr, path, params)
        kept = set(value) if isinstance(getattr(owner, last), set) else value
        setattr(owner, last, kept)
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the server's threads begin, which inherit it: the signal is for `sigwait` alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    server = xllamacpp.Server(params)
    signal.sigwait(stopping)
    del server


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
