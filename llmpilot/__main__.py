"""`python -m llmpilot`."""

import atexit
import os
import sys
from contextlib import suppress

from llmpilot import interrupts

# Worker processes import this module under another name: they need no command line.
if __name__ == "__main__":
    interrupts.install()  # before the libraries: some swallow an interrupt while they are imported
    try:
        from llmpilot.cli import run

        interrupts.check()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = interrupts.EXIT_CODE
    if code != interrupts.EXIT_CODE:
        sys.exit(code)
    # Python ends itself by the signal, whatever exit code it is given, if the interrupt first came up in code
    # that some library's C part runs: so end here, as the interpreter would.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
