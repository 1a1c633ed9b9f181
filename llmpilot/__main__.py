"""`python -m llmpilot`."""

import atexit
import os
import sys
from contextlib import suppress

INTERRUPTED = 130

if __name__ == "__main__":
    try:
        # Worker processes import this module under another name: they need no command line.
        from llmpilot import interrupts

        interrupts.install()  # before the libraries: some swallow an interrupt while they are imported
        from llmpilot.cli import main

        interrupts.check()
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
    else:
        sys.exit(0)
    # Python ends itself by the signal, whatever exit code it is given, if the interrupt first came up in code
    # that some library's C part runs: so end here, as the interpreter would.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(INTERRUPTED)
